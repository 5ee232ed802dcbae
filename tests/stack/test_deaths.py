"""Processes of a real run are killed: it ends within a minute, says which, leaves nothing, and goes on next time."""

import signal
from pathlib import Path

from benchmarks.victims import LIMIT_S, Outcome, Victim


def check(outcome: Outcome, *words: str) -> None:
    """It ended, with one line that holds ``words``, and left nothing."""
    assert outcome.status not in (None, 0)
    assert outcome.seconds < LIMIT_S
    assert outcome.left == []
    (line,) = outcome.message.splitlines()
    assert all(word in line for word in words), line


def test_a_run_survives_its_deaths(prepared: None, tmp_path: Path, victims: list[Victim]) -> None:
    """Its vLLM engine is killed while rollouts are under way; the next run continues; its main process is killed."""
    victims.append(first := Victim(tmp_path))
    first.wait_for("rollout", times=2)
    engine = first.find("vLLM engine")
    check(first.kill(engine), "VLLM::EngineCore", f"pid {engine.pid})")
    saved = first.saved_step
    assert saved >= 1

    victims.append(second := Victim(tmp_path))
    second.wait_for("step")
    assert second.resumed_step == saved
    assert second.first_step == saved + 1
    main = second.find("main process")
    check(second.kill(main), f"the main process (pid {main.pid}) died")


def test_a_run_that_stands_still_ends(prepared: None, tmp_path: Path, victims: list[Victim]) -> None:
    """Its trainer is stopped, which is no death."""
    victims.append(run := Victim(tmp_path, "watchdog_s=75"))
    run.wait_for("reading the data")
    outcome = run.kill(run.find("trainer"), signal.SIGSTOP)
    assert outcome.status == 1
    assert outcome.left == []
    assert outcome.message.splitlines()[-1].startswith("error: no progress in 75 s, in phase")
    assert "the trainer (" in run.output, "where each process is"
    stacks = next((tmp_path / "logs").glob("stacks_*.txt")).read_text()
    assert "ray/_private/worker.py" in stacks
