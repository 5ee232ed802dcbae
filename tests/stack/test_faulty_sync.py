"""Real runs whose vLLM worker goes wrong in a weight sync: each ends, soon, with the line that says what it was."""

import os
import sys
from pathlib import Path

import pytest
from faulty_rollout import FAULT
from runs import TINY, Run, finish, start


def run_with(fault: str, run_dir: Path, *overrides: str) -> Run:
    library = "actor_rollout_ref.model.external_lib=faulty_rollout"
    environment = {FAULT: fault, "PYTHONPATH": os.pathsep.join(sys.path)}  # in which pytest put this directory
    process = start(run_dir, *TINY, library, "trainer.val_before_train=false", *overrides, **environment)
    return finish(process, run_dir)


@pytest.mark.slow(reason="a minute; the comparison itself is tested in tests/engine")
def test_a_layer_that_no_longer_reaches_the_server_ends_the_run(prepared: None, tmp_path: Path) -> None:
    """The learning rate makes one update as large as many are together."""
    run = run_with("stale", tmp_path, "actor_rollout_ref.actor.optim.lr=0.03", "trainer.total_training_steps=3")
    assert run.status == 1, run.output
    message = next(line for line in run.output.splitlines() if line.startswith("error: "))
    assert "self-check after the first weight sync: log-probs of rollout server and trainer differ by" in message
    assert "they agreed before the update, so the weight sync loses or garbles weights" in message
    assert "self-check at the start: log-probs agree" in run.output
    assert sorted(run.metrics) == [1], "no update on what the wrong weights said"


def test_an_error_of_the_vllm_worker_is_told_at_once(prepared: None, tmp_path: Path) -> None:
    """Where verl would wait for ever, at the first sync."""
    run = run_with("raise", tmp_path)
    assert run.status == 1, run.output
    message = next(line for line in run.output.splitlines() if line.startswith("error: "))
    assert "weight sync: the vLLM worker of replica 0 failed:" in message
    assert "IndexError: no such expert: 7" in message
    assert run.seconds < 240, "it ended by itself, long before the time limit of 600 s"
