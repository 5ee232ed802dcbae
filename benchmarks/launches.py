"""Launches of the recipe's entry point, and what their records say about time."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.children import PROJECT, ChildError
from recipe.flowrl.common.files import open_own
from recipe.flowrl.common.jsonl import JsonLines

END_OF_RUN_S = 30
"""The entry point ends within 20 s of a signal."""

SMALL_BATCH = [
    "data.train_batch_size=8",
    "actor_rollout_ref.rollout.n=4",
    "actor_rollout_ref.actor.ppo_mini_batch_size=8",
    "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=16",
    "actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu=16",
    "actor_rollout_ref.ref.log_prob_micro_batch_size_per_gpu=16",
]
"""Steps of ``experiment=countdown_cpu`` that take a second or two."""

BEFORE_RAY = "checks and inputs"


@dataclass(frozen=True)
class Launch:
    """A finished run. ``started``: seconds since the epoch at which the command was given."""

    run_dir: Path
    started: float

    @property
    def events(self) -> list[dict[str, Any]]:
        return JsonLines(self.run_dir / "events.jsonl").read()

    @property
    def metrics(self) -> dict[int, dict[str, float]]:
        """Step -> its metrics."""
        return {line["step"]: line for line in JsonLines(self.run_dir / "metrics.jsonl").read()}


def launch(overrides: Sequence[str], run_dir: Path, timeout_s: float = 900) -> Launch:
    """Run ``main_flowrl`` with these overrides to its end; a ``run_dir`` that is there is continued.

    Raises:
        ChildError: it failed, or took longer than ``timeout_s`` seconds.
    """
    return launch_together({run_dir: overrides}, timeout_s)[0]


def launch_together(launches: Mapping[Path, Sequence[str]], timeout_s: float) -> list[Launch]:
    """The same for several at once: run directory -> overrides. The first that fails ends the others."""
    deadline = time.monotonic() + timeout_s
    with ExitStack() as stack:
        started = {run_dir: stack.enter_context(_running(given, run_dir)) for run_dir, given in launches.items()}
        moments = {run_dir: moment for run_dir, (_, moment) in started.items()}
        for run_dir, (process, _) in started.items():
            try:
                status: int | str = process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                status = f"no end after {timeout_s:.0f} s"
                _end(process)
            if status != 0:
                output = (run_dir / "console.log").read_text(errors="replace")
                raise ChildError(f"{' '.join(process.args)}: {status}\n{output[-3000:]}")
    return [Launch(run_dir, moment) for run_dir, moment in moments.items()]


@contextmanager
def _running(overrides: Sequence[str], run_dir: Path) -> Iterator[tuple[subprocess.Popen, float]]:
    """The process, which is ended with the block, and when it was started."""
    run_dir.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "recipe.flowrl.main_flowrl", *overrides, f"run_dir={run_dir}"]
    with os.fdopen(open_own(run_dir / "console.log", os.O_TRUNC), "w") as output:
        started = time.time()
        process = subprocess.Popen(
            command, cwd=PROJECT, stdout=output, stderr=subprocess.STDOUT, start_new_session=True, env=dict(os.environ)
        )
        try:
            yield process, started
        finally:
            _end(process)


def _end(process: subprocess.Popen) -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(END_OF_RUN_S)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def startup_phases(events: Sequence[Mapping[str, Any]], started: float) -> dict[str, float]:
    """Seconds of each phase from the command to the end of the first optimizer step, in order.

    The first optimizer step ends where the phase after the first ``update`` begins. A phase that occurs twice is one
    entry; the time before the first event is the entry ``BEFORE_RAY``.

    Raises:
        ValueError: the events don't reach that far.
    """
    phases = [event for event in events if event["event"] == "phase"]
    seconds: dict[str, float] = {}
    name, begun = BEFORE_RAY, started
    for event in phases:
        seconds[name] = seconds.get(name, 0.0) + event["time"] - begun
        if name == "update":
            return seconds
        name, begun = event["name"], event["time"]
    raise ValueError(f"no update has ended in these events; phases: {[event['name'] for event in phases]}")


def step_periods(events: Sequence[Mapping[str, Any]]) -> list[float]:
    """Seconds from the beginning of each training step to that of the next, all between them included.

    The last step, after which none begins, is left out.
    """
    begins = [event["time"] for event in events if event["event"] == "phase" and event["name"] == "rollout"]
    return [after - before for before, after in zip(begins, begins[1:], strict=False)]
