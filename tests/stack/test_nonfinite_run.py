"""A real run whose updates turn infinite: skipped, counted, then ended with the batch kept, and replayed."""

import subprocess
import sys
from pathlib import Path

from runs import PROJECT, TINY, finish, start


def test_updates_that_are_not_finite_end_the_run(prepared: None, tmp_path: Path) -> None:
    """The first update throws the weights out of float32's range; the next two of the same step are skipped."""
    absurd = ["actor_rollout_ref.actor.optim.lr=1e30", "actor_rollout_ref.actor.ppo_epochs=4", "max_skipped_updates=2"]
    run = finish(start(tmp_path, *TINY, *absurd, "trainer.val_before_train=false"), tmp_path)
    assert run.status == 1
    message = next(line for line in run.output.splitlines() if line.startswith("error: "))
    file = tmp_path / "nonfinite" / "step_1_rank_0.pt"
    assert "wasn't finite in 2 updates in a row, the last in step 1" in message
    assert str(file) in message
    command = [sys.executable, "-m", "recipe.flowrl", "replay", str(file)]
    replayed = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=120)
    assert replayed.returncode == 0, replayed.stderr
    assert "step 1, rank 0, gradient norm nan" in replayed.stdout
    assert "log_probs isn't finite in sequences" in replayed.stdout
