"""``algo=tb_replay`` through the real stack: earlier groups in the batches, kept in checkpoints."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
import torch
from runs import TINY, Run

REPLAY = [
    *TINY,
    "algo=tb_replay",
    "actor_rollout_ref.actor.ppo_mini_batch_size=4",
    "actor_rollout_ref.ref.log_prob_micro_batch_size_per_gpu=8",  # a mini-batch has as many new rows
    "trainer.val_before_train=false",
    "trainer.test_freq=-1",
]
"""Of eight prompts four are replayed, two in each mini-batch."""


@pytest.fixture(scope="module")
def replay_run(launch: Callable[..., Run]) -> Run:
    """Three steps."""
    return launch(*REPLAY, "trainer.total_training_steps=3", "trainer.save_freq=3")


def test_half_of_a_batch_is_replayed_from_the_second_step_on(replay_run: Run) -> None:
    first, *others = (replay_run.metrics[step] for step in (1, 2, 3))
    assert first["replay/share"] == 0 and first["replay/groups"] == 0
    assert [metrics["replay/share"] for metrics in others] == [0.5, 0.5]
    assert [metrics["replay/groups"] for metrics in others] == [8, 12]
    assert others[0]["replay/age_max"] == 1 <= others[1]["replay/age_max"] <= 2
    for metrics in (first, *others):
        assert metrics["train/missing_rollouts"] == 0 and metrics["actor/grad_norm"] > 0
        assert metrics["training/rollout_probs_diff_max"] < 1e-4, "a check of the weight sync, by the new rows alone"
    for metrics in others:
        assert metrics["replay/log_ratio_abs_max"] > 1e-3, "the policy has moved since"


def test_only_new_rollouts_are_told(replay_run: Run) -> None:
    for step, prompts in {1: 8, 2: 4, 3: 4}.items():
        lines = (replay_run.run_dir / "rollouts" / f"{step}.jsonl").read_text().splitlines()
        rows = [json.loads(line) for line in lines]
        assert len(rows) == prompts * 4
        mean = sum(row["score"] for row in rows) / len(rows)
        assert replay_run.metrics[step]["critic/score/mean"] == pytest.approx(mean)


def test_a_checkpoint_holds_whole_groups(replay_run: Run) -> None:
    kept = torch.load(replay_run.checkpoint(3) / "replay.pt", weights_only=False)
    assert [step for _, _, step in kept] == [1] * 8 + [2] * 4 + [3] * 4
    for rows, reward, _ in kept:
        assert len(rows) == 4 and len({row.key.split("_")[0] for row in rows}) == 1
        assert reward == pytest.approx(sum(float(row.columns["rm_scores"].sum()) for row in rows) / 4)
        for row in rows:
            tokens = len(row.columns["responses"])
            for name in ("rollout_log_probs", "ref_log_prob", "response_mask"):
                assert len(row.columns[name]) == tokens
            assert not {"old_log_probs", "advantages", "group_log_z"} & set(row.columns)
    at_the_start = [row for rows, _, step in kept if step == 1 for row in rows]
    for row in at_the_start:  # drawn by the reference itself
        torch.testing.assert_close(row.columns["rollout_log_probs"], row.columns["ref_log_prob"], atol=1e-3, rtol=0)


@pytest.mark.slow("two starts of the stack more")
def test_a_resumed_and_an_asynchronous_run(launch: Callable[..., Run], replay_run: Run) -> None:
    """The memory goes on where it was; with ``mode=async`` each of a step's mini-batches has its share."""
    steps = ["trainer.total_training_steps=4", "trainer.save_freq=4"]
    resumed = launch(*REPLAY, *steps, run_dir=replay_run.run_dir)
    assert resumed.metrics[4]["replay/groups"] == 16 and resumed.metrics[4]["replay/share"] == 0.5
    run = launch(*REPLAY, *steps, "mode=async")
    assert [run.metrics[step]["replay/share"] for step in (1, 2, 3, 4)] == [0, 0.5, 0.5, 0.5]
    assert all(run.metrics[step]["train/missing_rollouts"] == 0 for step in (1, 2, 3, 4))
    assert run.metrics[4]["replay/age_max"] <= 3
