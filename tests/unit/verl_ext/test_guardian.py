"""The guardian: what is left of a run that was killed, and of one that doesn't end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from multiprocessing import shared_memory
from pathlib import Path

import psutil
import pytest

from recipe.flowrl.common.project import PROJECT
from verl_ext.guardian import remove_files
from verl_ext.processes import SHARED_MEMORY

RUN = """
import subprocess, sys, time
from pathlib import Path
from verl_ext.guardian import Guardian
from verl_ext.processes import adopt_orphans

child = '''
import signal, subprocess, sys, time
from multiprocessing import shared_memory
signal.signal(signal.SIGTERM, signal.SIG_IGN)
memory = shared_memory.SharedMemory(create=True, size=4096)
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
print(memory.name, flush=True)
time.sleep(60)
'''
adopt_orphans()
guardian = Guardian(keep_ray_logs=Path(sys.argv[1]))
(guardian.directory / "ray/session_1/logs").mkdir(parents=True)
(guardian.directory / "ray/session_1/logs/raylet.out").write_text("why")
running = subprocess.Popen([sys.executable, "-c", child], stdout=subprocess.PIPE, text=True, start_new_session=True)
print(guardian.pid, guardian.directory, running.stdout.readline(), end="", flush=True)
"""


class Run:
    """A process with a guardian, a child in a session of its own that is deaf to SIGTERM, and a grandchild."""

    def __init__(self, logs: Path, then: str) -> None:
        script = textwrap.dedent(RUN) + textwrap.dedent(then)
        self.process = subprocess.Popen(
            [sys.executable, "-c", script, logs],
            cwd=PROJECT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        guardian, directory, segment = self.process.stdout.readline().split()
        self.guardian, self.directory = psutil.Process(int(guardian)), Path(directory)
        self.segment = Path("/dev/shm") / segment
        self.everyone = psutil.Process(self.process.pid).children(recursive=True)
        assert len(self.everyone) >= 3
        assert self.segment.exists()

    def left(self) -> list[object]:
        """What is still there once the guardian is gone."""
        self.guardian.wait(20)
        alive = [p for p in self.everyone if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
        return alive + [path for path in (self.segment, self.directory) if path.exists()]


@pytest.fixture
def runs(tmp_path: Path) -> Iterator[list[Run]]:
    started: list[Run] = []
    yield started
    for run in started:
        for process in [*run.everyone, run.process]:
            try:
                process.kill()
            except psutil.NoSuchProcess:
                pass
        run.process.communicate()


@pytest.mark.parametrize("group", [False, True])
def test_nothing_is_left_of_a_run_that_was_killed(runs: list[Run], tmp_path: Path, group: bool) -> None:
    """With a message, and Ray's logs where they can be read; also when its whole process group was killed."""
    run = Run(tmp_path / "logs", "time.sleep(60)")
    runs.append(run)
    time.sleep(1.2)  # the guardian looks every second
    (os.killpg if group else os.kill)(run.process.pid, signal.SIGKILL)
    run.process.wait()
    assert run.left() == []
    assert run.process.stderr.read().splitlines()[-1] == (
        f"error: the main process (pid {run.process.pid}) died; its processes have been ended"
    )
    assert (tmp_path / "logs" / "raylet.out").read_text() == "why"


def test_a_run_that_does_not_end_is_killed_with_its_reason(runs: list[Run], tmp_path: Path) -> None:
    run = Run(
        tmp_path / "logs",
        """
        import signal
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        guardian.expect_end(0.5, 'a worker died')
        guardian.expect_end(60, 'a later reason')
        time.sleep(60)
        """,
    )
    runs.append(run)
    run.process.wait(20)
    assert run.process.returncode == -signal.SIGKILL
    assert run.left() == []
    assert "error: a worker died; its processes have been ended" in run.process.stderr.read()


def test_a_run_that_ends_dismisses_it(runs: list[Run], tmp_path: Path) -> None:
    run = Run(
        tmp_path / "logs",
        """
        from verl_ext.processes import end_descendants
        end_descendants(grace_s=0.5, spare={guardian.pid})
        guardian.dismiss(failed=False)
        """,
    )
    runs.append(run)
    assert run.process.wait(20) == 0
    assert run.left() == []
    assert run.process.stderr.read().count("error") == 0
    assert not (tmp_path / "logs").exists()


def test_a_guardian_that_is_gone_is_replaced(runs: list[Run], tmp_path: Path) -> None:
    run = Run(
        tmp_path / "logs",
        """
        while not (replaced := guardian.ensure()):
            time.sleep(0.05)
        print(replaced, guardian.ensure(), guardian.pid, flush=True)
        time.sleep(60)
        """,
    )
    runs.append(run)
    run.guardian.kill()
    run.guardian.wait(5)
    replaced, again, pid = run.process.stdout.readline().split()
    assert (replaced, again) == ("True", "False")
    run.guardian = psutil.Process(int(pid))
    time.sleep(1.2)
    run.process.kill()
    assert run.left() == []


def test_shared_memory_of_a_weight_sync_is_removed_once_nobody_uses_it(tmp_path: Path) -> None:
    used = shared_memory.SharedMemory(name=f"verl_weights_used_{os.getpid()}", create=True, size=4096)
    orphan = SHARED_MEMORY / f"verl_weights_orphan_{os.getpid()}"
    orphan.write_bytes(b"x")
    try:
        remove_files(tmp_path / "verl-0", None)
        assert not orphan.exists()
        assert (SHARED_MEMORY / used.name).exists()
    finally:
        used.close()
        used.unlink()
