"""Checkpoints: resumed equals uninterrupted, and the head's file fits any number of ranks and can't be missing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from launch import Failure
from torch.utils._pytree import tree_flatten

Result = Callable[[str], Any]


def assert_identical(actual: Any, desired: Any) -> None:
    """Equal to the last bit, in whatever nesting."""
    (values, spec), (wanted, wanted_spec) = tree_flatten(actual), tree_flatten(desired)
    assert spec == wanted_spec
    for value, want in zip(values, wanted, strict=True):
        assert torch.equal(value, want) if isinstance(want, torch.Tensor) else value == want


def test_what_is_loaded_is_what_was_saved(result: Result) -> None:
    """Weights, both optimizers' moments and step counts, learning rates, both schedules."""
    assert_identical(result("checkpoint")["loaded"], result("checkpoint")["saved"])


def test_the_next_update_is_that_of_an_uninterrupted_run(result: Result) -> None:
    outcome = result("checkpoint")
    resumed, uninterrupted = outcome["resumed"], outcome["uninterrupted"]
    for key in ("parameters", "moments", "rates"):
        assert_identical(resumed[key], uninterrupted[key])
    for name, value in uninterrupted["metrics"].items():
        if name != "mfu":
            assert resumed["metrics"][name] == value, name
    with pytest.raises(AssertionError):
        assert_identical(uninterrupted["parameters"], outcome["saved"]["parameters"])


def test_only_the_weights_where_load_contents_says_so(result: Result) -> None:
    outcome = result("checkpoint")
    assert_identical(outcome["weights only"]["parameters"], outcome["saved"]["parameters"])
    assert outcome["weights only"]["optimizer states"] == [0, 0]
    assert outcome["weights only"]["schedules"] == [0, 0]


def test_the_heads_file_of_one_rank_loads_on_any_number(result: Result, directory: Path) -> None:
    file = torch.load(directory / "checkpoint_1/global_step_1/actor/log_partition.pt", weights_only=True)
    outcome = result("other_checkpoints")
    assert_identical(outcome["head"], dict(file["model"]))
    for name, moment in outcome["moments"].items():
        assert torch.equal(moment, file["optimizer"]["state"][name]["exp_avg"])
        assert moment.abs().max() > 0


def test_a_checkpoint_without_the_head_is_refused_before_anything_is_loaded(result: Result) -> None:
    outcome = result("other_checkpoints")
    assert "log_partition.pt is missing" in outcome["error"]
    assert "\n" not in outcome["error"]
    assert_identical(outcome["untouched"], outcome["before"])


def test_lora_trains_adapters_and_head_only(result: Result) -> None:
    outcome = result("lora")
    before, after = outcome["before"], outcome["after"]
    moved = {name for name in before["policy"] if not torch.equal(before["policy"][name], after["policy"][name])}
    assert moved == {name for name in before["policy"] if "lora_" in name}
    assert len(moved) == 2 * 2 * 7  # A and B of seven linear layers in two blocks
    assert any(not torch.equal(before["head"][name], after["head"][name]) for name in before["head"])
    assert all("lora_" in name for name in outcome["synced"])
    assert all(metrics["flowrl/log_partition_grad_norm"] > 0 for metrics in outcome["metrics"])


# ---- on another number of ranks than saved it ----------------------------------------------------------------------


@pytest.fixture
def other(ranks: int, request: pytest.FixtureRequest) -> dict[str, Any]:
    """Results of the run that saved the checkpoints that ``ranks`` ranks load."""
    return request.getfixturevalue(f"results_{3 - ranks}")


@pytest.fixture
def loaded(resharded: Callable[[int], Any], ranks: int) -> dict[str, Any]:
    outcome = resharded(ranks)
    if isinstance(outcome, Failure):
        pytest.fail(outcome.traceback, pytrace=False)
    return outcome


def test_another_number_of_ranks_loads_the_same_state(loaded: dict[str, Any], other: dict[str, Any]) -> None:
    """Weights, both optimizers' moments and step counts, learning rates and schedules, to the last bit."""
    assert_identical(loaded["loaded"], other["checkpoint"]["saved"])
    assert_identical(loaded["lora"], other["lora"]["after"])


def test_its_next_update_is_the_other_numbers(loaded: dict[str, Any], other: dict[str, Any]) -> None:
    wanted, updated = other["checkpoint"]["uninterrupted"], loaded["updated"]
    assert_identical(updated["rates"], wanted["rates"])
    for key in ("parameters", "moments"):
        (values, spec), (targets, target_spec) = tree_flatten(updated[key]), tree_flatten(wanted[key])
        assert spec == target_spec
        for value, target in zip(values, targets, strict=True):
            torch.testing.assert_close(value, target, rtol=1e-4, atol=1e-6)
    for name in ("loss", "grad_norm", "flowrl/log_z", "flowrl/log_partition_grad_norm"):
        assert updated["metrics"][name] == pytest.approx(wanted["metrics"][name], rel=1e-4, abs=1e-6), name


def test_random_states_go_on_and_differ_by_rank(loaded: dict[str, Any], ranks: int, directory: Path) -> None:
    files = sorted((directory / f"checkpoint_{3 - ranks}/global_step_1/actor").glob("extra_state_*"))
    saved = [torch.load(file, weights_only=False)["rng"]["cpu"] for file in files]
    states = [state["cpu"] for state in loaded["random states"]]
    assert all(torch.equal(state, old) for state, old in zip(states, saved, strict=False))
    assert ranks == 1 or not torch.equal(*states)
