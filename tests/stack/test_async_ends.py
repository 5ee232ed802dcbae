"""How a run with ``mode=async`` ends: it is killed, stopped and interrupted, and goes on each time."""

import signal
from pathlib import Path

import pytest
from test_deaths import check

from benchmarks.victims import LIMIT_S, Victim

pytestmark = pytest.mark.slow("five starts of the stack, on the ways of test_deaths.py and test_signals.py")


def test_each_launch_goes_on_where_the_last_one_ended(prepared: None, tmp_path: Path, victims: list[Victim]) -> None:
    def start(saved: int) -> Victim:
        victims.append(victim := Victim(tmp_path, "mode=async"))
        victim.wait_for("step")
        assert (victim.resumed_step, victim.first_step) == (saved, saved + 1)
        return victim

    for kind, words in {
        "vLLM engine": "VLLM::EngineCore",
        "weight receiver": "a rollout server's weight receiver (CheckpointEngineWorker",
        "trainer": "the trainer (TaskRunner",
    }.items():
        run = start(victims[-1].saved_step if victims else 0)
        process = run.find(kind)
        check(run.kill(process), words, f"pid {process.pid})")
        assert run.saved_step >= 1

    run = start(run.saved_step)
    (tmp_path / "stop").touch()
    assert run.process.wait(LIMIT_S) == 75
    assert "is saved" in run.output and not (tmp_path / "stop").exists()
    stopped = run.saved_step

    run = start(stopped)
    outcome = run.kill(run.find("main process"), signal.SIGTERM)
    assert outcome.status == 143 and outcome.seconds < 20 and outcome.left == []
