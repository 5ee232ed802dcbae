"""Launches of the recipe's entry point, and what their records say about time."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.children import PROJECT, ChildError

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
        return _json_lines(self.run_dir / "events.jsonl")

    @property
    def metrics(self) -> dict[int, dict[str, float]]:
        """Step -> its metrics."""
        return {line["step"]: line for line in _json_lines(self.run_dir / "metrics.jsonl")}


def launch(overrides: Sequence[str], run_dir: Path, timeout_s: float = 900) -> Launch:
    """Run ``main_flowrl`` with these overrides to its end.

    Raises:
        ChildError: it failed, or took longer than ``timeout_s`` seconds.
    """
    run_dir.mkdir(parents=True)
    command = [sys.executable, "-m", "recipe.flowrl.main_flowrl", *overrides, f"run_dir={run_dir}"]
    with (run_dir / "console.log").open("w+") as output:
        started = time.time()
        process = subprocess.Popen(
            command, cwd=PROJECT, stdout=output, stderr=subprocess.STDOUT, start_new_session=True, env=dict(os.environ)
        )
        try:
            status: int | str = process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            status = f"no end after {timeout_s:.0f} s"
        finally:
            _end(process)
        if status != 0:
            output.seek(0)
            raise ChildError(f"{' '.join(command)}: {status}\n{output.read()[-3000:]}")
    return Launch(run_dir, started)


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


def _json_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]
