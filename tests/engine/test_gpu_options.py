"""The options of a GPU run, on: gradients and log-probs are those of an engine without any of them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import expected
import pytest
import torch
from tiny import Sequences
from torch import Tensor

Result = Callable[[str], Any]

ACTORS = ("flowrl, qwen2", "grpo, qwen2")
TIED = ("flowrl, llama", "grpo, llama")
CRITIC = "critic, qwen2"
ALL = "gpu"
ACTOR_OPTIONS = (
    ALL,
    "not fused",
    "padded",
    "offloaded",
    "ulysses",
    "not resharded",
    "prefetched",
    "packed without flash attention",
)
CASES = [("flowrl, qwen2", name) for name in ACTOR_OPTIONS]
CASES += [("grpo, qwen2", name) for name in (ALL, "not fused", "ulysses")]
CASES += [(case, ALL) for case in TIED]
CASES += [(CRITIC, name) for name in (ALL, "padded", "offloaded", "ulysses", "packed without flash attention")]


def assert_same(actual: dict[str, Tensor], desired: dict[str, Tensor], rtol: float = 1e-5) -> None:
    """Equal within float32's rounding, on the scale of the whole gradient."""
    assert actual.keys() == desired.keys()
    scale = max(tensor.abs().max().item() for tensor in desired.values())
    assert scale > 0
    for name, tensor in desired.items():
        message = partial("{}: {}".format, name)
        torch.testing.assert_close(actual[name], tensor, rtol=rtol, atol=2e-6 * scale, msg=message)


@pytest.mark.parametrize(("case", "name"), CASES)
def test_the_gradient_is_that_without_the_options(case: str, name: str, result: Result, results_1: dict) -> None:
    """On any number of ranks that of one rank."""
    plain, run = results_1["gpu_gradients"][case]["plain"], result("gpu_gradients")[case][name]
    for part in [part for part in ("policy", "head") if part in plain]:
        assert_same(run[part], plain[part])
    assert ("head" in run) == case.startswith("flowrl")
    loss = next(key for key in ("loss", "critic/vf_loss") if key in plain["metrics"])
    assert run["metrics"][loss] == pytest.approx(plain["metrics"][loss], rel=1e-5)


@pytest.mark.parametrize("case", [*ACTORS, *TIED, CRITIC])
def test_the_options_were_on(case: str, result: Result) -> None:
    runs = result("gpu_gradients")[case]
    critic = case == CRITIC
    assert runs[ALL]["fused"] == (None if critic else "torch") and runs["plain"]["fused"] is None
    assert runs["plain"]["flash calls"] == []
    assert max(runs[ALL]["flash calls"]) > 1, "several sequences in one packed batch"
    micro_batches = len(runs[ALL]["flash calls"]) / 4  # two layers, computed again in the backward pass
    assert micro_batches > 2, "a budget of tokens"


@pytest.mark.parametrize("case", [*ACTORS, CRITIC])
def test_bfloat16_points_the_same_way(case: str, result: Result, results_1: dict) -> None:
    plain, run = results_1["gpu_gradients"][case]["plain"], result("gpu_gradients")[case]["bfloat16"]
    for part in [part for part in ("policy", "head") if part in plain]:
        actual, desired = (torch.cat([g[part][name].flatten() for name in plain[part]]) for g in (run, plain))
        assert torch.cosine_similarity(actual, desired, dim=0) > 0.998
        assert not torch.equal(actual, desired)


@pytest.mark.parametrize("family", ["qwen2", "llama"])
@pytest.mark.parametrize("role", ["reference", "actor"])
@pytest.mark.parametrize("name", ["plain", ALL, "ulysses"])
def test_log_probs_are_the_models(
    role: str, family: str, name: str, result: Result, directory: Path, sequences: Sequences
) -> None:
    """On the first rank, which has the first rows."""
    rows = result("gpu_reference")[f"{role}, {family}"][name]
    model = expected.load(directory / family)
    assert len(rows) >= 24
    for row, prompt, response in list(zip(rows, sequences.prompts, sequences.responses, strict=False))[:24]:
        with torch.no_grad():
            desired = expected.response_log_probs(model, prompt, response)[0]
        actual = row[len(prompt) - 1 :][: len(response)].double()
        torch.testing.assert_close(actual, desired, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", [ALL, "offloaded"])
def test_the_gradient_of_lora_adapters(name: str, result: Result, results_1: dict) -> None:
    plain, run = results_1["gpu_lora"]["plain"], result("gpu_lora")[name]
    assert run["fused"] == "torch" and run["flash calls"]
    assert any("lora_B" in parameter for parameter in plain["policy"])
    for part in ("policy", "head"):
        assert_same(run[part], plain[part])


def test_with_offload_everything_is_on_the_device_while_it_is_needed_and_off_it_after(result: Result) -> None:
    moves = result("gpu_moves")
    weights, optimizers = ("policy", "head"), ("policy's optimizer", "head's optimizer")
    for phase, found in moves.items():
        for name, ways in found.items():
            assert ways == [] or ways[-1] == "offload", f"{name} stays on the device after {phase}: {ways}"
    for name in (*weights, *optimizers):
        assert moves["init"][name], f"{name} is on the device before it is needed"
        assert moves["update"][name][0] == "load"
    for phase in ("log-probs", "save", "load"):
        for name in weights:
            assert moves[phase][name][0] == "load", f"{name} in {phase}"
    assert moves["log-probs"]["policy's optimizer"] == moves["log-probs"]["head's optimizer"] == []
