"""The floor of a step's training part: plain PyTorch on the run's tokens, in the run's batches.

The same passes as a FlowRL step: log-probs of the policy, log-probs of the reference policy, and for each mini-batch
forward, backward and AdamW. Nothing else: no FSDP, no metrics, no clipping. Batches are padded; without flash attention
packing them is slower.
"""

import time
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForCausalLM

Pair = tuple[list[int], list[int]]


def measure(argument: dict[str, Any]) -> list[dict[str, float]]:
    """Seconds of ``old_log_prob``, ``ref`` and ``update_actor`` for each step.

    Args:
        argument: ``model``, its directory; ``steps``, for each step a list of (prompt's token ids, response's);
            ``infer_micro_batch``, ``mini_batch`` and ``micro_batch``, in sequences.
    """
    policy, reference = (_load(argument["model"]) for _ in range(2))
    optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-6)
    return [
        {
            "old_log_prob": _inference(policy, step, argument["infer_micro_batch"]),
            "ref": _inference(reference, step, argument["infer_micro_batch"]),
            "update_actor": _update(policy, optimizer, step, argument),
        }
        for step in argument["steps"]
    ]


def _load(path: str) -> torch.nn.Module:
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, attn_implementation="sdpa")


def _inference(model: torch.nn.Module, step: list[Pair], micro_batch: int) -> float:
    start = time.perf_counter()
    model.eval()
    with torch.no_grad():
        for rows in _chunks(step, micro_batch):
            _log_probs(model, rows)
    return time.perf_counter() - start


def _update(model: torch.nn.Module, optimizer: torch.optim.Optimizer, step: list[Pair], sizes: dict[str, Any]) -> float:
    start = time.perf_counter()
    model.train()
    for mini_batch in _chunks(step, sizes["mini_batch"]):
        optimizer.zero_grad()
        for rows in _chunks(mini_batch, sizes["micro_batch"]):
            loss = -_log_probs(model, rows).sum() / len(mini_batch)
            loss.backward()
        optimizer.step()
    return time.perf_counter() - start


def _log_probs(model: torch.nn.Module, rows: Sequence[Pair]) -> Tensor:
    """Log-probs of all response tokens, one after another."""
    tokens = [torch.tensor(prompt + response) for prompt, response in rows]
    answered = [torch.arange(len(row)) >= len(prompt) for row, (prompt, _) in zip(tokens, rows, strict=True)]
    # Padding on the right of a causal model needs no mask.
    input_ids, target = pad_sequence(tokens, batch_first=True), pad_sequence(answered, batch_first=True)[:, 1:]
    logits = model(input_ids=input_ids, use_cache=False).logits[:, :-1][target]
    labels = input_ids[:, 1:][target]
    return logits.gather(-1, labels.unsqueeze(-1)).squeeze(-1) - logits.logsumexp(-1)


def _chunks(rows: Sequence[Pair], size: int) -> Iterator[Sequence[Pair]]:
    for start in range(0, len(rows), size):
        yield rows[start : start + size]
