"""A step in one process is a step of verl's workers: the same rollouts give the same gradients and weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from one_process_scenarios import ALGORITHMS, CLIP_GRAD

Result = Callable[[str], Any]


@pytest.mark.parametrize("algo", ALGORITHMS)
def test_a_step_in_one_process_is_that_of_verls_workers(algo: str, result: Result) -> None:
    told = result("one_process")[algo]
    torch.testing.assert_close(told["log_probs"]["ours"], told["log_probs"]["verls"], rtol=1e-5, atol=1e-5)
    before = told["start"]
    assert set(before["ours"]) == ({"policy", "head"} if algo == "flowrl" else {"policy"})
    for part, weights in before["verls"].items():
        assert all(torch.equal(before["ours"][part][name], weight) for name, weight in weights.items())
    for update in told["updates"]:
        assert update["norms"]["ours"] == pytest.approx(update["norms"]["verls"], rel=1e-5)
        for part, gradients in update["gradients"]["verls"].items():
            scale = max(gradient.abs().max().item() for gradient in gradients.values())
            assert scale > 1e-4
            for name, gradient in gradients.items():
                ours = update["gradients"]["ours"][part][name]
                torch.testing.assert_close(ours, gradient, rtol=1e-4, atol=2e-5 * scale, msg=f"{part} {name}")
        for part, weights in update["weights"]["verls"].items():
            moved = [(weight - before["verls"][part][name]).abs().max() for name, weight in weights.items()]
            assert max(moved) > 5e-5, "half of the head's rate"
            for name, weight in weights.items():
                torch.testing.assert_close(update["weights"]["ours"][part][name], weight, rtol=0, atol=2e-6)


def test_some_updates_are_clipped_and_some_are_not(result: Result) -> None:
    norms = [update["norms"]["verls"] for told in result("one_process").values() for update in told["updates"]]
    assert min(norms) < CLIP_GRAD < max(norms)
