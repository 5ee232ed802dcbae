"""One launch of ``main_flowrl``, as small as it can be, and what it leaves."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from listening import Listening

from benchmarks.launches import SMALL_BATCH
from verl_ext.processes import descendants

PROJECT = Path(__file__).resolve().parents[2]

TINY = [
    *SMALL_BATCH,
    "data.val_max_samples=8",
    "actor_rollout_ref.rollout.val_kwargs.n=2",
    "trainer.total_training_steps=2",
    "trainer.test_freq=2",
    "trainer.save_freq=2",
]
"""A run of two small steps with a validation and a checkpoint at the end."""


@dataclass
class Run:
    """A finished launch of ``main_flowrl``; ``listening`` where somebody looked."""

    run_dir: Path
    status: int
    output: str
    seconds: float
    listening: Listening | None = None

    @property
    def metrics(self) -> dict[int, dict[str, float]]:
        """Step -> its metrics; the last line of a step wins."""
        lines = (self.run_dir / "metrics.jsonl").read_text().splitlines()
        return {line["step"]: line for line in map(json.loads, lines)}

    @property
    def log(self) -> str:
        return "\n".join(path.read_text(errors="replace") for path in sorted((self.run_dir / "logs").glob("*.log")))

    def checkpoint(self, step: int) -> Path:
        return self.run_dir / "checkpoints" / f"global_step_{step}"


def start(run_dir: Path, *overrides: str, experiment: str = "countdown_cpu", **environment: str) -> subprocess.Popen:
    """Start ``experiment`` with ``overrides``."""
    arguments = [f"experiment={experiment}", *overrides, f"run_dir={run_dir}"]
    return spawn("recipe.flowrl.main_flowrl", *arguments, **environment)


def spawn(module: str, *arguments: str, **environment: str) -> subprocess.Popen:
    """Start a program of the recipe's in a process group of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", module, *arguments],
        cwd=PROJECT,
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        # Of what a shell starts in the background SIGINT is ignored, and so it is of what that starts.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def finish(process: subprocess.Popen, run_dir: Path, timeout_s: float = 600) -> Run:
    """Wait for a launch to end; one that doesn't is killed and fails the test."""
    started = time.monotonic()
    try:
        output, _ = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        kill(process)
        output, _ = process.communicate()
        pytest.fail(f"no end after {timeout_s} s:\n{output[-3000:]}")
    return Run(run_dir, process.returncode, output, time.monotonic() - started)


def kill(process: subprocess.Popen) -> None:
    """Kill a launch and all below it."""
    for running in [*descendants(psutil.Process(process.pid)), process]:
        with suppress(psutil.NoSuchProcess):
            running.kill()
