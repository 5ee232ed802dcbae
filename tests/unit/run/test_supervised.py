"""A run under supervision from end to end, without Ray and verl: its worker sleeps, under the title of one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from recipe.flowrl.common.project import PROJECT

RUN = """
import subprocess, sys, time
from pathlib import Path

from recipe.flowrl.common.errors import exit_status_of
from recipe.flowrl.common.signals import Sigterm
from recipe.flowrl.reporting.console import RunConsole
from recipe.flowrl.reporting.events import EventWriter
from recipe.flowrl.run.supervised import supervised
from verl_ext.guardian import Guardian
from verl_ext.processes import adopt_orphans, end_descendants

run_dir, watchdog_s, body = Path(sys.argv[1]), float(sys.argv[2]), sys.argv[3]
adopt_orphans()
sigterm, events = Sigterm(), run_dir / "events.jsonl"
sigterm.handle()
guardian, status = Guardian(None), 0
try:
    with RunConsole(sys.stdout) as console, sigterm.translated():
        with supervised(events, watchdog_s, console, guardian, sigterm.raise_in_main):
            EventWriter(events).write("phase", name="rollout")
            worker = subprocess.Popen(["ray::WorkerDict.update_actor", "60"], executable="/bin/sleep")
            time.sleep(1.5)
            exec(body)
            time.sleep(60)
except BaseException as error:
    status = exit_status_of(error)
end_descendants(grace_s=0.5, spare={guardian.pid})
guardian.dismiss(failed=True)
print("left", guardian.directory.exists())
sys.exit(status)
"""


def launched(run_dir: Path, body: str, watchdog_s: float = 60) -> subprocess.CompletedProcess:
    """The run with ``body`` as what happens in it."""
    command = [sys.executable, "-c", RUN, str(run_dir), str(watchdog_s), body]
    return subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=55)


def test_a_death_that_no_wait_notices_ends_the_run(tmp_path: Path) -> None:
    run = launched(tmp_path, "worker.kill()")
    assert run.returncode == 1
    assert run.stderr.startswith("error: a training worker (WorkerDict, pid ")
    assert "was ended by SIGKILL" in run.stderr.splitlines()[0]
    assert "left False" in run.stdout


def test_an_error_that_a_death_led_to_names_the_death(tmp_path: Path) -> None:
    run = launched(tmp_path, "worker.kill(); time.sleep(0.2); raise ConnectionError('reset by peer')")
    assert run.stderr.startswith("error: a training worker (WorkerDict, pid ")


@pytest.mark.parametrize(
    ("body", "first_line", "status"),
    [
        ("raise ValueError('its own')", "error: ValueError: its own", 1),
        ("import os, signal; os.kill(os.getpid(), signal.SIGTERM)", "ended by SIGTERM", 143),
        ("raise KeyboardInterrupt", "interrupted", 130),
    ],
)
def test_what_is_no_fault_stays_what_it_is(tmp_path: Path, body: str, first_line: str, status: int) -> None:
    run = launched(tmp_path, body)
    assert (run.stderr.splitlines()[0], run.returncode) == (first_line, status)


def test_a_stall_shows_where_everything_is(tmp_path: Path) -> None:
    run = launched(tmp_path, "pass", watchdog_s=3)
    assert run.returncode == 1
    assert run.stderr.splitlines()[0] == "error: no progress in 3 s, in phase 'rollout'"
    assert "a training worker (WorkerDict, pid " in run.stdout
    (stacks,) = (tmp_path / "logs").glob("stacks_*.txt")
    assert "==== a training worker" in stacks.read_text()


def test_a_guardian_that_was_killed_is_replaced(tmp_path: Path) -> None:
    """At the next event; the run goes on."""
    body = """
import os, signal
os.kill(guardian.pid, signal.SIGKILL)
time.sleep(0.5)
EventWriter(events).write("phase", name="update")
time.sleep(1)
raise ValueError("the end")
"""
    run = launched(tmp_path, body)
    assert "the guardian process was gone" in run.stdout
    assert run.stderr.startswith("error: ValueError: the end")
