"""Ctrl-C and SIGTERM end a run, and a command that started one, within 20 s and leave no process behind."""

import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from runs import TINY, finish, kill, spawn, start

from verl_ext.processes import descendants, runs

LIMIT_S = 20
ENDLESS = [*TINY, "trainer.total_training_steps=200", "trainer.save_freq=-1"]


def is_raylet(process: psutil.Process) -> bool:
    try:
        return "raylet" in process.name()
    except psutil.NoSuchProcess:  # it was a short-lived one
        return False


@contextmanager
def killed_in_the_end(process: subprocess.Popen) -> Iterator[None]:
    """So that a test that fails leaves no run beside the next one."""
    try:
        yield
    finally:
        if process.poll() is None:
            kill(process)
            process.wait()


def assert_all_ended(processes: list[psutil.Process]) -> None:
    left = [process for process in processes if runs(process)]
    assert not left, left


@pytest.mark.parametrize(
    ("signum", "status", "reached"),
    [
        (signal.SIGINT, 130, "loading vLLM"),
        (signal.SIGTERM, 143, "1/200"),
    ],
)
def test_a_signal_ends_the_run(prepared: None, tmp_path: Path, signum: int, status: int, reached: str) -> None:
    process = start(tmp_path, *ENDLESS, PYTHONUNBUFFERED="1")
    with killed_in_the_end(process):
        for line in process.stdout:
            if reached in line:
                break
        below = descendants(psutil.Process(process.pid))
        assert len(below) > 5, "Ray runs"
        second = finish(start(tmp_path, *ENDLESS), tmp_path)
        assert second.status == 2
        refusal = f"error: {tmp_path}: another process is writing there: wait for it"
        assert any(line.startswith(refusal) for line in second.output.splitlines()), second.output
        sent = time.monotonic()
        process.send_signal(signum)
        run = finish(process, tmp_path, timeout_s=60)
        assert time.monotonic() - sent < LIMIT_S
    assert run.status == status
    assert "Traceback" not in run.output
    assert_all_ended(below)


STUDY = ["study=countdown", "algos=flowrl,grpo", "seeds=0", "jobs=2", "puzzles=4", "samples=16"]
OTHER_WAYS = pytest.mark.slow(reason="a start of the stack each, on the same way as compare and SIGTERM")
COMMANDS = {
    "compare": [*STUDY, *TINY, "dir={}"],
    "distribution": ["algo=flowrl", "mode=stack", "run_dir={}"],
}


@pytest.mark.parametrize(
    ("command", "signum", "status"),
    [
        ("compare", signal.SIGTERM, 143),
        pytest.param("compare", signal.SIGINT, 130, marks=OTHER_WAYS),
        pytest.param("distribution", signal.SIGTERM, 143, marks=OTHER_WAYS),
    ],
)
def test_what_a_command_started_ends_with_it(
    prepared: None, tmp_path: Path, command: str, signum: int, status: int
) -> None:
    """The signal is sent to the command alone, as ``kill`` does."""
    arguments = [argument.format(tmp_path) for argument in COMMANDS[command]]
    process = spawn("recipe.flowrl", command, *arguments)
    with killed_in_the_end(process):
        deadline, below = time.monotonic() + 300, []
        while not any(map(is_raylet, below)):
            assert process.poll() is None, process.stdout.read()
            assert time.monotonic() < deadline
            time.sleep(0.5)
            below = descendants(psutil.Process(process.pid))
        sent = time.monotonic()
        process.send_signal(signum)
        ended = finish(process, tmp_path, timeout_s=60)
        assert time.monotonic() - sent < LIMIT_S
    assert ended.status == status
    assert "Traceback" not in ended.output
    assert_all_ended(below)
