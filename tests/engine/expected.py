"""What the engine must compute, once more: plain float64 PyTorch, one sequence at a time, no verl, no FSDP."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from tiny import TEMPERATURE, Sequences
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from recipe.flowrl.config import FlowRLConfig
from recipe.flowrl.partition import LogPartition


def load(directory: Path) -> PreTrainedModel:
    """In float64, attention and experts written out: the grouped products of experts know no float64."""
    plainly = {"attn_implementation": "eager", "experts_implementation": "eager"}
    return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float64, **plainly)


def response_log_probs(model: PreTrainedModel, prompt: Tensor, response: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probs of the response's tokens ``(|y|,)`` and the prompt's mean final-norm output ``(H,)``."""
    output = model(torch.cat([prompt, response]).unsqueeze(0), output_hidden_states=True)
    log_probs = (output.logits[0, len(prompt) - 1 : -1] / TEMPERATURE).log_softmax(-1)
    prompt_state = output.hidden_states[-1][0, : len(prompt)].mean(0)
    return log_probs.gather(1, response.unsqueeze(1)).squeeze(1), prompt_state


def loss_of(model: PreTrainedModel, head: LogPartition, sequences: Sequences, config: FlowRLConfig) -> Tensor:
    """Eq. 6 and 7, or the whole residual divided: a mean over all sequences, of which an unmasked one adds nothing."""
    total = torch.zeros((), dtype=torch.float64)
    for row in range(len(sequences)):
        mask = sequences.response_mask[row].bool()
        if not mask.any():
            continue
        log_prob, prompt_state = response_log_probs(model, sequences.prompts[row], sequences.responses[row])
        log_z = head.layers(prompt_state.detach() if config.partition_detach else prompt_state).squeeze()
        log_ratio, length = (log_prob - sequences.ref_log_prob[row].double())[mask].sum(), int(mask.sum())
        scaled_reward = config.beta * sequences.advantages[row][mask][0]
        if config.length_normalization == "log_probs":
            residual = log_z + log_ratio / length - scaled_reward
        else:
            root = {"residual": 1.0, "residual_root": 0.5, "none": 0.0}[config.length_normalization]
            residual = (log_z + log_ratio - scaled_reward) / length**root
        ratio = math.exp((log_prob.detach() - sequences.old_log_probs[row])[mask].sum())
        total = total + min(max(ratio, 1 - config.clip_low), 1 + config.clip_high) * residual**2
        if config.ppo_coef:
            total = total + config.ppo_coef * _ppo(log_prob[mask], sequences, row, mask)
    return total / len(sequences)


def _ppo(log_prob: Tensor, sequences: Sequences, row: int, mask: Tensor) -> Tensor:
    """PPO's loss of a response, a mean over its tokens; verl's clip on both sides and its dual clip."""
    ratios = (log_prob - sequences.old_log_probs[row].double()[mask]).exp()
    advantage = sequences.advantages[row][mask][0].item()
    losses = []
    for ratio in ratios:
        loss = torch.max(-advantage * ratio, -advantage * ratio.clamp(0.8, 1.2))
        losses.append(torch.min(loss, torch.tensor(-3.0 * advantage).double()) if advantage < 0 else loss)
    return torch.stack(losses).mean()


def gradients(
    directory: Path, head_state: dict[str, Tensor], sequences: Sequences, config: FlowRLConfig
) -> tuple[float, dict[str, Tensor], dict[str, Tensor]]:
    """Loss, gradient of the policy and gradient of the head."""
    model = load(directory)
    head = LogPartition(model.config.hidden_size, config).double()
    head.load_state_dict(head_state)
    loss = loss_of(model, head, sequences, config)
    loss.backward()
    policy, partition = ({name: p.grad for name, p in module.named_parameters()} for module in (model, head))
    return loss.item(), policy, partition
