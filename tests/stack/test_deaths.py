"""Processes of a real run are killed: it ends within a minute, says which, leaves nothing, and goes on next time."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.victims import LIMIT_S, Outcome, Victim


@pytest.fixture
def victims() -> Iterator[list[Victim]]:
    started: list[Victim] = []
    yield started
    for victim in started:
        victim.end()


def check(outcome: Outcome, *words: str) -> None:
    """It ended, with one line that holds ``words``, and left nothing."""
    assert outcome.status not in (None, 0)
    assert outcome.seconds < LIMIT_S
    assert outcome.left == []
    (line,) = outcome.message.splitlines()
    assert all(word in line for word in words), line


def test_a_run_survives_its_deaths(prepared: None, tmp_path: Path, victims: list[Victim]) -> None:
    """The vLLM engine is killed, which no wait of verl's notices; then a worker stands still; then the main process."""
    victims.append(first := Victim(tmp_path))
    first.wait_for("update", times=2)
    engine = first.find("vLLM engine")
    check(first.kill(engine), "VLLM::EngineCore", f"pid {engine.pid})")
    assert first.saved_step >= 1

    victims.append(second := Victim(tmp_path, "watchdog_s=40"))
    second.wait_for("step")
    assert second.resumed_step == first.saved_step
    outcome = second.kill(second.find("training worker"), signal.SIGSTOP)
    stacks = next((tmp_path / "logs").glob("stacks_*.txt")).read_text()
    assert "no progress in 40 s, in phase" in outcome.message.splitlines()[-1]
    assert outcome.status == 1
    assert outcome.left == []
    assert "WorkerDict" in second.output, "where each process is"
    assert "ray/_private/worker.py" in stacks

    victims.append(third := Victim(tmp_path))
    third.wait_for("loading the model")
    main = third.find("main process")
    check(third.kill(main), f"the main process (pid {main.pid}) died")
