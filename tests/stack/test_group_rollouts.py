"""The responses of a prompt travel together by default, and are what verl's own way gives."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from runs import TINY, Run

STEPS = 2


@pytest.fixture(scope="module")
def one_by_one(launch: Callable[..., Run], tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The same seeded run with verl's single-turn loop under another name, which is a loop of somebody's own."""
    loops = tmp_path_factory.mktemp("loops") / "loops.yaml"
    target = "verl.experimental.agent_loop.single_turn_agent_loop.SingleTurnAgentLoop"
    loops.write_text(f"- {{name: own_single_turn, _target_: {target}}}\n")
    agent = "actor_rollout_ref.rollout.agent"
    own = [f"{agent}.agent_loop_config_path={loops}", f"{agent}.default_agent_loop=own_single_turn"]
    return launch(*TINY, f"trainer.total_training_steps={STEPS}", "deterministic=true", *own)


def samples(path: Path) -> list[tuple]:
    lines = map(json.loads, path.read_text().splitlines())
    return sorted((line["input"], line["output"], line["score"]) for line in lines)


def test_which_way_was_taken(flowrl_run: Run, one_by_one: Run) -> None:
    for step in range(1, STEPS + 1):
        assert flowrl_run.metrics[step]["training/grouped_rollouts"] == 1.0
        assert one_by_one.metrics[step]["training/grouped_rollouts"] == 0.0


def test_the_same_samples_and_rewards_either_way(flowrl_run: Run, one_by_one: Run) -> None:
    for name in ("rollouts/1.jsonl", "rollouts/2.jsonl", "validation/2.jsonl"):
        grouped = samples(flowrl_run.run_dir / name)
        assert grouped == samples(one_by_one.run_dir / name), name
        assert len({output for _, output, _ in grouped}) > 4


def test_a_step_of_one_update_has_no_pass_for_old_log_probs(flowrl_run: Run) -> None:
    """And its update tells how far trainer and rollout are apart."""
    metrics = flowrl_run.metrics[2]
    assert 0 < metrics["training/rollout_probs_diff_max"] < 1e-4
    assert "actor/entropy" not in metrics, "which verl's pass tells"
