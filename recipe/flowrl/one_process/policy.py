"""What a model says of responses, with gradient: log-probs, entropies, values, the state of the prompt."""

from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from recipe.flowrl.tasks.sampling import Responses, positions


@dataclass(frozen=True)
class Output:
    """``log_probs`` and ``entropy`` ``(B, T)`` of the response's tokens in nats; ``prompt_state`` ``(B, H)``."""

    log_probs: torch.Tensor
    entropy: torch.Tensor
    prompt_state: torch.Tensor


def read(policy: PreTrainedModel, responses: Responses) -> Output:
    """Run a policy over responses. Equal rows, and equal prompts, are computed once; their gradients add up."""
    rows, attention, of_row = _distinct(responses)
    start = responses.prompt_length - 1  # a response's first token is what the prompt's last one predicts
    prompts, of_prompt = rows[:, :start].unique(dim=0, return_inverse=True)
    mask = attention.new_zeros(prompts.shape).index_copy(0, of_prompt, attention[:, :start])
    decoder = policy.get_decoder()
    prompt = decoder(input_ids=prompts, attention_mask=mask, position_ids=positions(mask), use_cache=True)
    prompt.past_key_values.batch_select_indices(of_prompt)
    hidden = decoder(
        input_ids=rows[:, start:],
        attention_mask=attention,
        position_ids=positions(attention)[:, start:],
        past_key_values=prompt.past_key_values,
    ).last_hidden_state
    steps = policy.get_output_embeddings()(hidden[:, :-1]).float().log_softmax(-1)
    log_probs = steps.gather(-1, rows[:, start + 1 :].unsqueeze(-1)).squeeze(-1)
    entropy = -(steps.exp() * steps).sum(-1)
    before = torch.cat([prompt.last_hidden_state[of_prompt], hidden[:, :1]], 1)
    state = prompt_state(before, attention[:, : start + 1])
    return Output(log_probs[of_row], entropy[of_row], state[of_row])


def prompt_state(hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """(B, H) mean of ``hidden`` (B, L, H) over the prompt's tokens, as the engine gives it to the head of log Z."""
    kept = mask.unsqueeze(-1).to(hidden.dtype)
    return (hidden * kept).sum(1) / kept.sum(1)


def values(critic: PreTrainedModel, responses: Responses) -> torch.Tensor:
    """(B, T): at each response token the value of what comes before it."""
    rows, attention, of_row = _distinct(responses)
    logits = critic(input_ids=rows, attention_mask=attention, position_ids=positions(attention)).logits
    return logits[:, responses.prompt_length - 1 : -1, 0][of_row]


def _distinct(responses: Responses) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The distinct rows, their attention, and where each row is among them."""
    rows, of_row = responses.rows.unique(dim=0, return_inverse=True)
    attention = rows.new_zeros(rows.shape).index_copy(0, of_row, responses.attention.long())
    return rows, attention, of_row
