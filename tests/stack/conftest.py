"""Real runs of the whole stack, each started once a session and looked at by many tests."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from listening import Listening
from runs import TINY, Run, finish, start

from benchmarks.victims import Victim


@pytest.fixture(scope="session")
def launch(prepared: None, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Run]:
    """Run ``experiment=countdown_cpu`` with the given overrides; the run must succeed."""

    def run(*overrides: str, run_dir: Path | None = None) -> Run:
        run_dir = run_dir or tmp_path_factory.mktemp("run")
        process = start(run_dir, *overrides)
        listening = Listening(process.pid)
        finished = finish(process, run_dir)
        listening.stop()
        finished.listening = listening
        tail = finished.log[-6000:] if finished.status else ""
        assert finished.status == 0, f"{overrides}\n{finished.output[-3000:]}\n{tail}"
        return finished

    return run


@pytest.fixture(scope="session")
def flowrl_run(launch: Callable[..., Run]) -> Run:
    """Four seeded steps of the experiment as it is, small, with checkpoints after the second and the fourth."""
    return launch(*TINY, "trainer.total_training_steps=4", "deterministic=true")


@pytest.fixture
def victims() -> Iterator[list[Victim]]:
    started: list[Victim] = []
    yield started
    for victim in started:
        victim.end()
