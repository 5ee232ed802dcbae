"""``mode=async`` through the real stack: rollout servers on resources of their own, weights through sockets."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from runs import TINY, Run

AGE, LAG = "training/off_policy/trajectory_staleness_worst", "train/rollout_log_ratio"
ASYNC = [*TINY, "mode=async", "actor_rollout_ref.actor.ppo_mini_batch_size=4"]
"""Two updates between two weight syncs."""


@pytest.fixture(scope="module")
def async_run(launch: Callable[..., Run]) -> Run:
    """Three steps."""
    return launch(*ASYNC, "trainer.total_training_steps=3", "trainer.save_freq=3", "trainer.test_freq=3")


def test_it_trains(async_run: Run) -> None:
    assert sorted(async_run.metrics) == [0, 1, 2, 3]
    for step in (1, 2, 3):
        metrics = async_run.metrics[step]
        assert metrics["actor/grad_norm"] > 0 and metrics["actor/flowrl/log_partition_grad_norm"] > 0
        assert metrics["train/missing_rollouts"] == 0
        assert 0 < metrics["separate_async/weights_sent_mib"] < 100
    assert async_run.metrics[1]["actor/flowrl/ref_kl"] < async_run.metrics[3]["actor/flowrl/ref_kl"]


def test_both_updates_of_a_step_share_the_old_policy(async_run: Run) -> None:
    """All of the first step's data were drawn with the first weights, and so is pi_old of its second update."""
    first = async_run.metrics[1]
    assert first["training/rollout_probs_diff_max"] < 1e-4
    assert first[f"{LAG}/abs_max"] < 1e-2
    assert first["actor/flowrl/log_importance_ratio_abs_max"] > 1e-4, "while the policy has moved"


def test_new_weights_reach_the_servers(async_run: Run) -> None:
    """Later data are a step old, or none: they weren't drawn with the first weights."""
    assert async_run.metrics[1][f"{AGE}/max"] == 0
    assert 0 <= async_run.metrics[3][f"{AGE}/mean"] <= async_run.metrics[3][f"{AGE}/max"] < 2.5
    assert async_run.metrics[3]["training/off_policy/trajectory_staleness/min"] < 2


def test_what_is_told(async_run: Run) -> None:
    for step in (1, 2, 3):
        metrics = async_run.metrics[step]
        assert 0 <= metrics["train/trainer_idle"] <= 1 and 0 <= metrics["train/servers_idle"] <= 1
        assert metrics[f"{LAG}/abs_mean"] <= metrics[f"{LAG}/abs_max"]
    report = (async_run.run_dir / "report.html").read_text()
    assert "Age of the data" in report and "Idle time" in report
    assert async_run.output.index("loading vLLM") < async_run.output.index("first weight sync")


def test_no_other_machine_can_reach_it(async_run: Run) -> None:
    assert async_run.listening.seen and async_run.listening.reachable() == {}


def test_its_checkpoint_holds_the_prompts_under_way(async_run: Run) -> None:
    files = {path.name for path in async_run.checkpoint(3).iterdir()}
    assert {"actor", "data.pt", "transfer_queue"} <= files


@pytest.mark.slow("a start of the stack; the algorithms differ in what they have beside the policy")
@pytest.mark.parametrize("algo", ["grpo", "ppo", "prorl"])
def test_other_algorithms(launch: Callable[..., Run], algo: str) -> None:
    """No reference; a critic; a reference that moves, in a worker of its own."""
    extra = ["algorithm.reference_reset_steps=1", "algorithm.filter_groups.enable=false"] if algo == "prorl" else []
    run = launch(*ASYNC, "trainer.val_before_train=false", "trainer.test_freq=-1", f"algo={algo}", *extra)
    assert sorted(run.metrics) == [1, 2]
    assert all(metrics["actor/grad_norm"] >= 0 for metrics in run.metrics.values())
    assert run.metrics[1]["training/rollout_probs_diff_max"] < 1e-4


@pytest.mark.slow("a start of the stack; the same with another pi_old")
def test_the_rollouts_log_probs_as_pi_old(launch: Callable[..., Run]) -> None:
    """No pass for pi_old; the loss tells how far pi is from the policy that drew the data, by the servers' numbers."""
    extra = ["trainer.val_before_train=false", "trainer.test_freq=-1", "trainer.total_training_steps=4"]
    run = launch(*ASYNC, *extra, "algorithm.rollout_correction.bypass_mode=true")
    told = [run.metrics[step]["actor/flowrl/log_importance_ratio_abs_max"] for step in (1, 2, 3, 4)]
    assert min(told) > 1e-4 and max(told[1:]) > told[0], "later data are of an earlier policy"
    for step in (1, 2, 3, 4):
        assert run.metrics[step]["timing_s/old_log_prob"] < 0.5 * run.metrics[step]["timing_s/ref"]
        assert "training/rollout_probs_diff_max" not in run.metrics[step], "there is nothing to compare"
