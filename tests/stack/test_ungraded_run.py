"""A real run whose grader fails: what it fails on is left out of the update and told, and the run ends if it lasts."""

from pathlib import Path

from runs import TINY, finish, start

REWARD = """
import itertools

from recipe.flowrl.tasks.countdown import reward

asked = itertools.count()


def compute_score(data_source, solution_str, ground_truth, extra_info=None, **kwargs):
    failed = (number := next(asked)) >= {rows} or number % 2
    scored = reward.compute_score(data_source, solution_str, ground_truth, extra_info)
    return {{**scored, "grader_failed": float(failed)}}
"""


def test_a_grader_that_fails_is_no_wrong_answer(prepared: None, tmp_path: Path) -> None:
    """Half of the first step's responses are graded, and none of the others'."""
    prompts, rollouts = 4, 4
    (tmp_path / "reward.py").write_text(REWARD.format(rows=prompts * rollouts))
    options = [
        f"reward.custom_reward_function.path={tmp_path / 'reward.py'}",
        "reward.num_workers=1",
        "max_ungraded_steps=2",
        "trainer.val_before_train=false",
        f"data.train_batch_size={prompts}",
        f"actor_rollout_ref.actor.ppo_mini_batch_size={prompts}",
        f"actor_rollout_ref.rollout.n={rollouts}",
    ]
    run_dir = tmp_path / "run"
    run = finish(start(run_dir, *TINY, "trainer.total_training_steps=9", *options), run_dir)
    assert run.status == 1, run.output
    assert "warning: step 1: 8 of 16 responses couldn't be graded, since the grader failed: left out" in run.output
    assert "warning: step 2: 16 of 16 responses couldn't be graded, since the grader failed: no update" in run.output
    message = next(line for line in run.output.splitlines() if line.startswith("error: "))
    assert "no response could be graded in 2 steps in a row, the last of them step 3" in message
    assert "Traceback" not in run.output
    first, second = run.metrics[1], run.metrics[2]
    assert (first["train/grader_failed"], second["train/grader_failed"]) == (0.5, 1.0)
    assert first["train/missing_rollouts"] == second["train/missing_rollouts"] == 0
    assert "train/solve_rate" in first and "train/solve_rate" not in second
    assert first["actor/skipped_update"] == 0.0 and first["actor/grad_norm"] > 0
    assert second["actor/skipped_update"] == 1.0 and "actor/grad_norm" not in second
