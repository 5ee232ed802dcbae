"""Every algorithm of ``configs/algo/`` through the real stack for two steps: a critic and log Z from the group in
``make test``, all of them in ``make test-algorithms``."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from runs import TINY, Run

ALGORITHMS = sorted(path.stem for path in (Path(__file__).resolve().parents[2] / "configs" / "algo").glob("*.yaml"))
SHORT = [*TINY, "trainer.val_before_train=false", "trainer.test_freq=-1"]


@pytest.mark.algorithms
@pytest.mark.parametrize("algo", ALGORITHMS)
def test_two_steps(launch: Callable[..., Run], algo: str) -> None:
    run = launch(*SHORT, f"algo={algo}", *(["algorithm.reference_reset_steps=1"] if algo == "prorl" else []))
    assert set(run.metrics) == {1, 2}
    for metrics in run.metrics.values():
        assert math.isfinite(metrics["actor/grad_norm"])
        assert metrics["training/rollout_probs_diff_max"] < 1e-4
    assert "log Z" in run.output or not algo.startswith("flowrl")


def test_ppo_trains_a_critic(launch: Callable[..., Run]) -> None:
    run = launch(*SHORT, "algo=ppo")
    assert all(metrics["critic/vf_loss"] > 0 for metrics in run.metrics.values())
    assert (run.checkpoint(2) / "critic" / "model_world_size_1_rank_0.pt").is_file()


def test_group_mean_partition_centres_the_residual(launch: Callable[..., Run]) -> None:
    """With the raw reward, on-policy (one update a step), the residuals of every prompt's rollouts add up to zero.

    With the log-probs divided, so that each weighs alike; the other weights are those of a unit test.
    """
    run = launch(*SHORT, "algo=flowrl_plus", "flowrl.length_normalization=log_probs", "flowrl.beta=15")
    assert not (run.checkpoint(2) / "actor" / "log_partition.pt").exists()
    for metrics in run.metrics.values():
        assert metrics["actor/flowrl/residual"] == pytest.approx(0.0, abs=1e-4)
        assert metrics["actor/flowrl/residual_abs"] > 0.1
    assert run.metrics[2]["actor/flowrl/log_z"] != 0.0
    assert "in the target: saturated" in run.output, "the line after the first step"
    assert run.metrics[2]["actor/flowrl/target_log_odds"] > 15.0, "beta times the lengths"
    assert 0 < run.metrics[2]["actor/flowrl/reference_share"] < 1


@pytest.mark.algorithms
def test_reference_reset_and_resume(launch: Callable[..., Run]) -> None:
    """The reference becomes the policy before step 2; a resumed run goes on with it."""
    options = [*SHORT, "algo=prorl", "algorithm.filter_groups.enable=false"]
    run = launch(*options, "algorithm.reference_reset_steps=1")
    assert run.metrics[2]["actor/kl_loss"] == pytest.approx(0.0, abs=1e-6)
    more = ("algorithm.reference_reset_steps=100", "trainer.total_training_steps=3", "trainer.save_freq=1")
    launch(*options, *more, run_dir=run.run_dir)
    before, after = (
        torch.load(run.checkpoint(step) / "actor" / "reference_world_size_1_rank_0.pt", weights_only=True)
        for step in (2, 3)
    )
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


@pytest.mark.algorithms
def test_kl_matched_advantages_have_the_reference_term(launch: Callable[..., Run]) -> None:
    """At the first step policy and reference are the same, at the second the KL dominates so small a beta."""
    run = launch(
        *SHORT, "algo=grpo_kl_matched", "actor_rollout_ref.actor.optim.lr=1e-3", "algorithm.kl_matched_beta=1e-3"
    )
    first, second = (run.metrics[step]["critic/advantages/max"] for step in (1, 2))
    assert first < 2, "a normalised reward of four rollouts"
    assert second > 2 * first
