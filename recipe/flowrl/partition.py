"""The log-partition function log Z_phi(x) (arXiv 2509.15207, section 4, appendix E) and the pooling that feeds it."""

import torch
import torch.distributed as dist
from torch import nn

from recipe.flowrl.config import FlowRLConfig


class LogPartition(nn.Module):
    """MLP from a prompt's mean hidden state to log Z(x).

    ``partition_depth`` linear layers: all but the last followed by GELU, LayerNorm and dropout, the last to a scalar.
    The paper fixes three layers of the model's width and a random start; activation and normalisation are those of the
    released code. Runs in float32 whatever the policy's precision: bfloat16 can't tell log Z = 8.00 from 8.03.
    """

    def __init__(self, hidden_size: int, config: FlowRLConfig) -> None:
        super().__init__()
        width = config.partition_width or hidden_size
        layers: list[nn.Module] = []
        for layer in range(config.partition_depth - 1):
            in_features = hidden_size if layer == 0 else width
            layers += [nn.Linear(in_features, width), nn.GELU(), nn.LayerNorm(width)]
            layers += [nn.Dropout(config.partition_dropout)] if config.partition_dropout else []
        layers.append(nn.Linear(width if layers else hidden_size, 1))
        self.layers = nn.Sequential(*layers)

    def forward(self, prompt_state: torch.Tensor) -> torch.Tensor:
        """Log Z of each prompt, ``(B,)`` in float32, from its mean hidden state ``(B, H)``."""
        return self.layers(prompt_state.float()).squeeze(-1).clone()  # FSDP2 warns of a module that returns a view


def prompt_mean(
    hidden_states: torch.Tensor,
    prompt_lengths: torch.Tensor,
    sequence_lengths: torch.Tensor,
    *,
    packed: bool,
    sp_group: dist.ProcessGroup | None = None,
) -> torch.Tensor:
    """Mean of the hidden states over all tokens of each prompt.

    Args:
        hidden_states: ``(T, H)`` where sequences are packed one after another, with padding, if any, at the end; or
            ``(B, L, H)`` where they are padded on the right. A row is a prompt followed by its response.
        prompt_lengths: ``(B,)``, in tokens, at least 1.
        sequence_lengths: ``(B,)``, in tokens, prompt and response.
        packed: which of the two layouts.
        sp_group: the Ulysses sequence-parallel group; each rank then holds an equal slice of the packed tokens, in rank
            order. The sums are exchanged, not the hidden states, by verl's gather of the log-probs: every rank of the
            group computes the same loss, and the gather scales the gradient for FSDP to average over them.

    Returns:
        ``(B, H)`` in float32.
    """
    if packed:
        row = _packed_prompt_rows(prompt_lengths, sequence_lengths)
        row = _local_slice(row, hidden_states.shape[0], sp_group)
    else:
        position = torch.arange(hidden_states.shape[1], device=hidden_states.device)
        in_prompt = position < prompt_lengths.unsqueeze(1)
        row = torch.where(in_prompt, torch.arange(len(prompt_lengths), device=position.device).unsqueeze(1), -1)
        hidden_states, row = hidden_states.flatten(0, 1), row.flatten()

    index = row.ge(0).nonzero().squeeze(1)
    total = hidden_states.new_zeros(len(prompt_lengths), hidden_states.shape[-1], dtype=torch.float32)
    total = total.index_add(0, row[index], hidden_states[index].float())
    if sp_group is not None:
        from verl.utils.ulysses import gather_outputs_and_unpad  # verl takes seconds to import

        total = gather_outputs_and_unpad(total.unsqueeze(0), gather_dim=0, group=sp_group).sum(0)
    return total / prompt_lengths.unsqueeze(1)


def _packed_prompt_rows(prompt_lengths: torch.Tensor, sequence_lengths: torch.Tensor) -> torch.Tensor:
    """For each packed token the row whose prompt it belongs to, -1 for a response token; ``(sum of lengths,)``."""
    rows = torch.arange(len(sequence_lengths), device=sequence_lengths.device).repeat_interleave(sequence_lengths)
    starts = sequence_lengths.cumsum(0) - sequence_lengths
    position = torch.arange(len(rows), device=rows.device) - starts[rows]
    return torch.where(position < prompt_lengths[rows], rows, -1)


def _local_slice(row: torch.Tensor, local_tokens: int, sp_group: dist.ProcessGroup | None) -> torch.Tensor:
    """This rank's part of ``row``, padded at the end with -1 to the tokens that the ranks hold together."""
    ranks, rank = (1, 0) if sp_group is None else (dist.get_world_size(sp_group), dist.get_rank(sp_group))
    padded = nn.functional.pad(row, (0, ranks * local_tokens - len(row)), value=-1)
    return padded[rank * local_tokens : (rank + 1) * local_tokens]
