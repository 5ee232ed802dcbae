"""How a run is doing, from what it leaves in its directory.

Looks from outside, from any machine that sees the directory, while the run goes on or after it; the run isn't touched.
"""

import json
import re
import socket
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event
from typing import Any

import psutil
import yaml

from recipe.flowrl.common.errors import UserError
from recipe.flowrl.common.foreign import read_text, without_aliases
from recipe.flowrl.common.progress import short_duration
from recipe.flowrl.common.secrets import mask
from recipe.flowrl.common.terminal import printable
from recipe.flowrl.reporting import names
from recipe.flowrl.reporting.console import StepClock
from recipe.flowrl.reporting.events import FIRST_PHASE, follow, is_number
from recipe.flowrl.run.run_dir import KILLED
from verl_ext.checkpoint_files import TRACKER

QUIET_S = 900.0
"""Without an event for so long, a run on another machine counts as silent: longer than a usual phase."""


@dataclass
class Progress:
    """What the events say. ``seen``: when the last one was written, seconds since the epoch."""

    step: int | None = None
    total: int | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    phase: str | None = None
    seen: float | None = None
    clock: StepClock = field(default_factory=StepClock)

    def add(self, event: dict[str, Any]) -> None:
        """Take one event in; what isn't one is left out."""
        if not is_number(event.get("time")):
            return
        self.seen = event["time"]
        if event["event"] == "phase":
            self.phase = str(event.get("name"))
            if self.phase == FIRST_PHASE:  # what lies between two launches is no step's time
                self.clock = StepClock()
        elif event["event"] == "step" and is_number(event.get("step")) and isinstance(event.get("metrics"), dict):
            total = event.get("total")
            self.step, self.phase = event["step"], None
            self.total = (total if is_number(total) else None) or self.total
            self.clock.tick(event["step"], event["time"])
            if names.STEP_TIME in event["metrics"]:  # a validation alone has no reward
                self.metrics = {name: value for name, value in event["metrics"].items() if is_number(value)}


def status(run_dir: Path, now: float) -> str:
    """The lines that the command prints; ``now`` in seconds since the epoch.

    Raises:
        UserError: ``run_dir`` isn't the directory of a run, or its record can't be read.
    """
    record = _record(run_dir)
    progress = Progress()
    stop = Event()
    stop.set()  # what is there, and no more
    try:
        for event in follow(run_dir / "events.jsonl", stop):
            progress.add(event)
    except OSError as error:
        raise UserError(f"the run's events can't be read ({error}): remove what is there") from error
    state, runs = _state(record, progress, now)
    lines = {
        "run": f"{record.get('experiment')}, {record.get('algo')}",
        "state": state,
        "step": _step(progress),
        "reward": _number(progress.metrics.get(names.REWARD), ".3f"),
        "s/step": _number(progress.clock.seconds_per_step or progress.metrics.get(names.STEP_TIME), ".1f"),
        "ETA": _eta(progress, now) if runs else "none, it isn't running",
        "last checkpoint": _checkpoint(run_dir, now),
        "attempts": str(record.get("attempts", "unknown")),
        "last attempt ended": "not yet" if runs else _ended(record),
        "the one before": record.get("previous_end") or "none",
    }
    # What others wrote gets no line of its own, and no say over the terminal.
    return "\n".join(f"{name:<19}{printable(mask(' '.join(str(text).split())))}" for name, text in lines.items())


def _record(run_dir: Path) -> dict[str, Any]:
    if not run_dir.is_dir():
        what = "is a file" if run_dir.is_file() else "doesn't exist"
        raise UserError(f"{run_dir} {what}: give the run_dir of a training run, such as outputs/countdown_cpu/flowrl")
    path = run_dir / "run.json"
    try:
        record = json.loads(read_text(path))
    except FileNotFoundError:
        inside = sorted(str(found.parent) for found in run_dir.glob("**/run.json"))
        hint = f"; there are runs in {', '.join(inside[:3])}" if inside else "; a run writes it when training begins"
        raise UserError(f"{run_dir} isn't a run's directory: it has no run.json{hint}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(
            f"{path} can't be read ({error}): the file is damaged; the next launch writes it anew"
        ) from error
    if not isinstance(record, dict):
        raise UserError(f"{path} isn't the record of a run: it holds no JSON object; the next launch writes it anew")
    return {name: value for name, value in record.items() if _fits(name, value)}


def _fits(name: str, value: Any) -> bool:
    """Whether a run writes such a value under this name."""
    if name in ("started", "launched", "finished", "pid", "attempts", "exit_status"):
        return is_number(value)
    return isinstance(value, str)


def _state(record: dict[str, Any], progress: Progress, now: float) -> tuple[str, bool]:
    """In words, and whether the run goes on."""
    if "finished" in record:
        ended = "finished" if record.get("exit_status") == 0 else "ended"
        return f"{ended} {_ago(record['finished'], now)}", False
    where = f"on {record.get('host')}" + (f", SLURM job {record['slurm_job']}" if record.get("slurm_job") else "")
    doing = f", in phase {progress.phase!r}" if progress.phase else ""
    sign = max(progress.seen or 0, record.get("launched", 0))
    if record.get("host") == socket.gethostname():
        if _lives(record):
            return f"running {where}{doing}", True
        return f"gone without an end{doing}; last sign of life {_ago(sign, now)}", False
    if now - sign > QUIET_S:
        return f"silent {where}{doing}; last sign of life {_ago(sign, now)}", False
    return f"running {where}{doing}; last sign of life {_ago(sign, now)}", True


def _ended(record: dict[str, Any]) -> str:
    return record.get("ended") or (f"exit status {record['exit_status']}" if "exit_status" in record else KILLED)


def _lives(record: dict[str, Any]) -> bool:
    """Whether the process that wrote the record is still there, and not another one with its number."""
    try:
        return psutil.Process(record["pid"]).create_time() <= record["launched"]
    except (psutil.Error, KeyError, TypeError, ValueError, OverflowError):
        return False


def _step(progress: Progress) -> str:
    if progress.step is None:
        return "none yet"
    return f"{progress.step}/{progress.total}" if progress.total else str(progress.step)


def _eta(progress: Progress, now: float) -> str:
    if progress.total is None or progress.seen is None:
        return "unknown"
    seconds = progress.clock.eta(progress.total, only=progress.metrics.get(names.STEP_TIME))
    if seconds is None or progress.seen is None:
        return "unknown"
    return short_duration(seconds - (now - progress.seen))


def _checkpoint(run_dir: Path, now: float) -> str:
    """verl's tracker names it. A run directory that was moved or mounted elsewhere is looked into as it is now."""
    directory = run_dir / "checkpoints"
    try:
        config = yaml.safe_load(without_aliases(read_text(run_dir / "config.yaml")))
        given = Path(config["trainer"]["default_local_dir"])
        inside = given.is_relative_to(config["run_dir"])
        directory = run_dir / given.relative_to(config["run_dir"]) if inside else given
    except (OSError, yaml.YAMLError, LookupError, TypeError, ValueError, AttributeError, RecursionError):
        pass  # the default stands
    tracker = directory / TRACKER
    if not tracker.is_file():
        return "none yet"
    step = read_text(tracker, "replace").strip()[:20]
    if re.fullmatch(r"[0-9]+", step) is None:
        return f"unknown: {tracker} is damaged; the run finds the newest whole one by itself"
    checkpoint = directory / f"global_step_{step}"
    missing = "" if checkpoint.is_dir() else ", but it is missing"
    return f"step {step}, {_ago(tracker.stat().st_mtime, now)}: {checkpoint}{missing}"


def _ago(moment: float, now: float) -> str:
    return f"{short_duration(now - moment)} ago"


def _number(value: float | None, form: str) -> str:
    return "none yet" if value is None else format(value, form)
