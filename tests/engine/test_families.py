"""Each model family through verl's engine: what the family's own code computes in float64, on every path that is right.

Which paths those are is what a run finds out beforehand (``recipe.flowrl.models.trial``).
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import expected
import families
import pytest
import torch
from launch import Failure, run_ranks
from peft import PeftModel
from published_configs import ENGINE_IN_CI, ENGINE_OTHERS
from torch import Tensor
from transformers import AutoModelForCausalLM

from recipe.flowrl.__main__ import main
from recipe.flowrl.config import FlowRLConfig

LEFT = {
    "gpt-oss-20b, dequantised": {"packed"},
    "Qwen3.5-4B, the language model alone": {"packed"},
    "granite-4.0-h-tiny": {"packed", "fused"},
    "gemma-2-2b": {"fused"},
    "granite-3.3-8b": {"fused"},
}
"""What isn't tried in the engine, since a run leaves it (``tests/unit/models/test_trial.py``)."""
SLOW = pytest.mark.slow(reason="minutes; of the same kinds as those of every run")
FAMILIES = [*ENGINE_IN_CI, *(pytest.param(name, marks=SLOW) for name in ENGINE_OTHERS)]

Results = Callable[[str], dict[str, Any]]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("families")


@pytest.fixture(scope="module")
def results(place: Path) -> Results:
    """Of a family; all that are run together share a process."""

    @functools.cache
    def run(names: tuple[str, ...]) -> dict[str, Any]:
        directory = place / str(len(names))
        directory.mkdir(exist_ok=True)
        for name in names:
            families.make(directory, name)
        (directory / "families.json").write_text(json.dumps(names))
        torch.save(None, directory / "sequences.pt")
        found = run_ranks(directory, 1, "families", limit_s=1200)["families"]
        assert not isinstance(found, Failure), found.traceback
        return found

    def get(name: str) -> dict[str, Any]:
        return run(ENGINE_IN_CI if name in ENGINE_IN_CI else ENGINE_OTHERS)[name]

    return get


def directory_of(place: Path, name: str) -> Path:
    return next(path / name for path in place.iterdir() if (path / name).is_dir())


@pytest.fixture
def plain(results: Results, place: Path) -> Callable[[str], Any]:
    """Loss and gradients of the equation: float64, a sequence at a time, no verl."""

    @functools.cache
    def compute(name: str) -> tuple[float, dict[str, Tensor], dict[str, Tensor]]:
        head = results(name)["head"]
        path = directory_of(place, name)
        sequences = torch.load(path / "sequences.pt", weights_only=False)
        return expected.gradients(path, head, sequences, FlowRLConfig())

    return compute


def succeeded(outcome: Any) -> dict[str, Any]:
    if isinstance(outcome, Failure):
        pytest.fail(outcome.traceback, pytrace=False)
    return outcome


def assert_near(actual: dict[str, Tensor], desired: dict[str, Tensor]) -> None:
    """Within float32's rounding, on the scale of the whole gradient."""
    scale = torch.cat([gradient.flatten() for gradient in desired.values()]).norm()
    assert scale > 0
    for name, gradient in desired.items():
        difference = (actual[name].double() - gradient.double()).norm() / scale
        assert difference < 2e-5, f"{name}: {difference:.1e} of the whole gradient"


@pytest.mark.parametrize("name", FAMILIES)
def test_paths_that_are_wrong_are_left(name: str, results: Results) -> None:
    assert set(families.OPTIONS) - results(name)["right"] == LEFT.get(name, set())


@pytest.mark.parametrize("option", ["padded", "packed", "fused", "checkpointing"])
@pytest.mark.parametrize("name", FAMILIES)
def test_gradients_of_policy_and_head(name: str, option: str, results: Results, plain: Callable) -> None:
    """The head's gradient is a function of the pooled prompt states, log Z and the residuals."""
    if option in LEFT.get(name, ()):
        pytest.skip("a run leaves it")
    loss, policy, head = plain(name)
    run = succeeded(results(name)[option])
    assert run["metrics"]["loss"] == pytest.approx(loss, rel=1e-4)
    policy = {key: gradient for key, gradient in policy.items() if gradient is not None}
    assert_near(run["policy"], policy)
    assert_near(run["head"], head)


@pytest.mark.parametrize("option", families.OPTIONS)
@pytest.mark.parametrize("name", FAMILIES)
def test_log_probs(name: str, option: str, results: Results, place: Path) -> None:
    """With fresh adapters as well, which add nothing yet."""
    if option in LEFT.get(name, ()):
        pytest.skip("a run leaves it")
    run, path = succeeded(results(name)[option]), directory_of(place, name)
    assert_computes(expected.load(path), path, run["log_probs"])


@torch.no_grad()
def assert_computes(model: torch.nn.Module, path: Path, log_probs: list[Tensor]) -> None:
    sequences = torch.load(path / "sequences.pt", weights_only=False)
    for row, prompt, response in zip(log_probs, sequences.prompts, sequences.responses, strict=True):
        desired = expected.response_log_probs(model, prompt, response)[0]
        actual = row[len(prompt) - 1 :][: len(response)].double()
        torch.testing.assert_close(actual, desired.double(), rtol=1e-4, atol=5e-5)


@pytest.mark.parametrize("kind", ["checkpoint", "LoRA checkpoint"])
@pytest.mark.parametrize("name", FAMILIES)
def test_a_resumed_run_goes_on_as_if_uninterrupted(name: str, kind: str, results: Results) -> None:
    ways = succeeded(results(name)[kind])
    for part in ("policy", "head"):
        wanted = ways["uninterrupted"][part]
        assert all(torch.equal(ways["resumed"][part][key], tensor) for key, tensor in wanted.items())


@pytest.mark.parametrize("name", FAMILIES)
def test_an_export_loads_and_computes_what_the_actor_does(
    name: str, results: Results, place: Path, tmp_path: Path
) -> None:
    saved, path = succeeded(results(name)["checkpoint"])["saved"], directory_of(place, name)
    assert main(["export", str(path / "full" / "global_step_1"), str(tmp_path / "model")]) == 0
    _, info = AutoModelForCausalLM.from_pretrained(tmp_path / "model", output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert_computes(expected.load(tmp_path / "model"), path, saved)


@pytest.mark.parametrize("name", FAMILIES)
def test_an_exported_adapter_loads_and_computes_what_the_actor_does(
    name: str, results: Results, place: Path, tmp_path: Path
) -> None:
    saved, path = succeeded(results(name)["LoRA checkpoint"])["saved"], directory_of(place, name)
    assert main(["export", str(path / "lora" / "global_step_1"), str(tmp_path / "model")]) == 0
    base = expected.load(tmp_path / "model")
    assert_computes(PeftModel.from_pretrained(base, tmp_path / "model" / "lora_adapter"), path, saved)
