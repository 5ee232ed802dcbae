"""The presets' losses in verl's engine: the papers' gradient, on one rank and on two, however micro-batches are cut."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import expected
import pytest
import torch
from paper_losses import PAPER_LOSSES, Batch
from tiny import PRESETS, Sequences
from torch import Tensor

BY_TOKEN = {"cispo", "dppo_kl", "dppo_tv", "dro", "reinforce_plus_plus_baseline"}
"""Losses that are means over tokens; the others are over all responses, of which an unmasked one adds nothing."""


def padded(rows: list[Tensor]) -> Tensor:
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)


@pytest.fixture(scope="module")
def papers(directory: Path, sequences: Sequences) -> Callable[[str], dict[str, Tensor]]:
    """Gradients of a paper's loss by the policy's parameters, in float64."""
    kept = [row for row in range(len(sequences)) if sequences.response_mask[row].any()]

    def gradients(algo: str) -> dict[str, Tensor]:
        model = expected.load(directory / "qwen2")
        log_probs = [expected.response_log_probs(model, sequences.prompts[i], sequences.responses[i])[0] for i in kept]
        masks = [sequences.response_mask[row].bool() for row in kept]
        batch = Batch(
            log_prob=padded(log_probs),
            old=padded([sequences.old_log_probs[row].double() for row in kept]),
            ref=padded([sequences.ref_log_prob[row].double() for row in kept]),
            mask=padded(masks),
            advantage=torch.stack(
                [sequences.advantages[row].double()[mask][0] for row, mask in zip(kept, masks, strict=True)]
            ),
        )
        loss = PAPER_LOSSES[algo](batch) * (1 if algo in BY_TOKEN else len(kept) / len(sequences))
        loss.backward()
        return {name: parameter.grad for name, parameter in model.named_parameters()}

    return gradients


@pytest.mark.parametrize("algo", PRESETS)
def test_the_engines_gradient_is_the_papers(
    algo: str, result: Callable[[str], Any], papers: Callable[[str], dict[str, Tensor]]
) -> None:
    desired = papers(algo)
    scale = max(tensor.abs().max().item() for tensor in desired.values())
    assert scale > 1e-4
    for run in result("presets")[algo].values():
        assert run["policy"].keys() == desired.keys()
        for name, tensor in desired.items():
            torch.testing.assert_close(
                run["policy"][name].double(), tensor, rtol=1e-4, atol=3e-6 * scale, msg=f"{algo}: {name}"
            )
