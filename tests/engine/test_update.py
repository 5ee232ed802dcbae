"""What one update does: step sizes, decay, clipping, schedule, and what a gradient that isn't finite does not do."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from recipe.flowrl.config import FlowRLConfig
from recipe.flowrl.run.replay import replay
from recipe.flowrl.worker import flowrl_worker_loss
from verl_ext.nonfinite import load_batch

Result = Callable[[str], Any]


def largest_step(update: dict[str, Any], part: str) -> float:
    before, after = update["before"][part], update["after"][part]
    return max((after[name] - before[name]).abs().max().item() for name in before)


def norm(*gradients: dict[str, Tensor]) -> float:
    return torch.cat([g.flatten() for part in gradients for g in part.values()]).double().norm().item()


def assert_equal(actual: dict[str, Tensor], desired: dict[str, Tensor]) -> None:
    assert actual.keys() == desired.keys()
    assert all(torch.equal(actual[name], desired[name]) for name in desired)


@pytest.mark.parametrize(
    ("options", "rate"), [("default", 1e-2), ("policy's lr", 1e-3), ("lr 0", 0.0), ("clipped together", 1e-2)]
)
def test_each_part_moves_at_its_own_learning_rate(result: Result, options: str, rate: float) -> None:
    """The first step of Adam moves every weight whose gradient isn't tiny by the learning rate."""
    update = result("updates")[options]
    assert largest_step(update, "head") == pytest.approx(rate, rel=1e-3)
    assert largest_step(update, "policy") == pytest.approx(1e-3, rel=0.05)  # and a little weight decay
    assert update["metrics"]["flowrl/log_partition_lr"] == rate
    assert update["metrics"]["lr"] == 1e-3


@pytest.mark.parametrize(("options", "decay"), [("weight decay", 0.5), ("policy's weight decay", 0.01)])
def test_weight_decay_of_the_head(result: Result, options: str, decay: float) -> None:
    plain, decayed = result("updates")["default"], result("updates")[options]
    for name, weight in plain["before"]["head"].items():
        difference = decayed["after"]["head"][name] - plain["after"]["head"][name]
        torch.testing.assert_close(difference, -1e-2 * decay * weight, rtol=1e-3, atol=1e-6)
    assert_equal(decayed["after"]["policy"], plain["after"]["policy"])


def test_depth_and_width(result: Result) -> None:
    shapes = {name: tuple(weight.shape) for name, weight in result("updates")["shape"]["after"]["head"].items()}
    assert shapes == {
        "layers.0.weight": (24, 32),
        "layers.0.bias": (24,),
        "layers.2.weight": (24,),
        "layers.2.bias": (24,),
        "layers.3.weight": (1, 24),
        "layers.3.bias": (1,),
    }


def test_dropout_is_active_in_an_update(result: Result) -> None:
    without, with_dropout = result("dropout")["0.0"], result("dropout")["0.5"]
    assert without[0] == without[1]
    assert with_dropout[0] != with_dropout[1]


@pytest.mark.parametrize("options", ["clipped together", "clipped separately"])
def test_clipping_is_torchs(result: Result, options: str) -> None:
    """One norm over policy and head together, or one for each; the norm reported is that before clipping."""
    unclipped, clipped = result("updates")["default"], result("updates")[options]
    parts = [["policy", "head"]] if options == "clipped together" else [["policy"], ["head"]]
    for names in parts:
        gradients = [unclipped["clipped"][part] for part in names]
        parameters = []
        for gradient in (g for part in gradients for g in part.values()):
            parameters.append(torch.nn.Parameter(torch.empty_like(gradient)))
            parameters[-1].grad = gradient.clone()
        torch.nn.utils.clip_grad_norm_(parameters, max_norm=0.5)
        actual = [g for part in names for g in clipped["clipped"][part].values()]
        for parameter, gradient in zip(parameters, actual, strict=True):
            torch.testing.assert_close(gradient, parameter.grad, rtol=1e-5, atol=1e-9)
        assert norm(*(clipped["clipped"][part] for part in names)) == pytest.approx(0.5, rel=1e-4)
    metrics, whole = clipped["metrics"], unclipped["clipped"]
    assert metrics["grad_norm"] == pytest.approx(norm(whole["policy"], whole["head"]), rel=1e-5)
    assert metrics["flowrl/log_partition_grad_norm"] == pytest.approx(norm(whole["head"]), rel=1e-5)
    assert (metrics["clipped_update"], unclipped["metrics"]["clipped_update"]) == (1.0, 0.0)


def test_the_head_follows_the_policys_schedule(result: Result) -> None:
    policy, head = zip(*result("schedule"), strict=True)
    assert policy[0] == 0.0
    assert policy[1] == pytest.approx(1e-3)
    assert 0 < policy[2] < policy[1]
    assert head == pytest.approx([10 * rate for rate in policy])


@pytest.mark.parametrize("part", ["policy", "head"])
def test_a_nan_in_either_gradient_skips_both(result: Result, part: str) -> None:
    """On one rank only: the others have to skip as well."""
    outcome = result("non_finite")
    assert math.isnan(outcome[part]["norm"])
    for name in ("policy", "head"):
        assert_equal(outcome[part]["after"][name], outcome["before"][name])


def test_a_skipped_update_is_reported_and_the_next_one_works(result: Result) -> None:
    outcome = result("non_finite")
    skipped, recovered = outcome["data"]["metrics"], outcome["recovered"]
    assert skipped["skipped_update"] == 1.0
    assert not math.isfinite(skipped["grad_norm"])
    for name in ("policy", "head"):
        assert_equal(outcome["data"]["after"][name], outcome["before"][name])
    assert recovered["skipped_update"] == 0.0
    assert math.isfinite(recovered["grad_norm"])


def test_an_infinite_loss_with_a_finite_gradient_is_skipped(result: Result) -> None:
    outcome = result("skipped_in_a_row")
    assert outcome["infinite"]["skipped_update"] == 1.0
    assert_equal(outcome["after"]["policy"], outcome["before"]["policy"])
    assert outcome["recovered"]["skipped_update"] == 0.0


def test_too_many_skipped_updates_in_a_row_end_the_run_and_keep_the_batch(result: Result) -> None:
    """The recovered update in between starts the count anew."""
    outcome = result("skipped_in_a_row")
    assert outcome["first"]["skipped_update"] == 1.0
    file = Path(outcome["directory"]) / "step_8_rank_0.pt"
    assert "2 updates in a row, the last in step 8" in outcome["error"]
    assert str(file) in outcome["error"]
    replayed = replay(load_batch(file), partial(flowrl_worker_loss, FlowRLConfig(partition_lr=0.0)))
    assert math.isnan(replayed[0].loss)
    assert replayed[0].bad_inputs["ref_log_prob"] == replayed[0].bad_gradients == [0]
    for micro_batch in replayed[1:]:
        assert micro_batch.loss == pytest.approx(micro_batch.recorded, rel=1e-6)
        assert not micro_batch.bad_inputs


def test_offloading_between_updates_changes_nothing(result: Result) -> None:
    outcome = result("moves")
    for how in ("by hand", "by flag"):
        for part in ("policy", "head"):
            assert_equal(outcome[how][part], outcome["in place"][part])


@pytest.mark.parametrize(("engine", "words"), [("fp16", "use bf16 or fp32"), ("forward-only", "forward-only")])
def test_engines_that_cannot_train_a_head_are_refused(result: Result, engine: str, words: str) -> None:
    message = result("refused")[engine]
    assert words in message
    assert "\n" not in message
