"""What a person sees while a run goes on: phases with their elapsed time, and a line per step.

On a terminal the phases under way are a live line with a spinner. Anywhere else (a file, a pipe, ``nohup``) the output
is plain lines, flushed one by one: the start of a phase, every ten seconds of it, and its end.
"""

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from rich.console import Console
from rich.progress import Progress, ProgressColumn, SpinnerColumn, Task, TaskID
from rich.text import Text

from recipe.flowrl.common.progress import HEARTBEAT_S, short_duration
from recipe.flowrl.common.secrets import mask
from recipe.flowrl.common.terminal import printable
from recipe.flowrl.reporting import names
from recipe.flowrl.reporting.events import end_of, follow, is_number


class StepClock:
    """Seconds per step and time to go, from the moments at which steps end.

    The mean over the last ``window`` steps also counts what happens between them (validation, checkpoints).
    """

    def __init__(self, window: int = 20):
        self._ends: deque[tuple[int, float]] = deque(maxlen=window + 1)

    def tick(self, step: int, now: float) -> None:
        """Step ``step`` ended at ``now`` (seconds). A step that does not follow the last one starts afresh."""
        if self._ends and step != self._ends[-1][0] + 1:
            self._ends.clear()
        self._ends.append((step, now))

    @property
    def seconds_per_step(self) -> float | None:
        """The mean; None until two steps in a row have ended."""
        if len(self._ends) < 2:
            return None
        (start, begin), (end, now) = self._ends[0], self._ends[-1]
        return (now - begin) / (end - start)

    def eta(self, total: int, only: float | None = None) -> float | None:
        """Seconds until step ``total`` ends. ``only``: the duration of a step without a predecessor to measure by."""
        each = only if self.seconds_per_step is None else self.seconds_per_step
        return None if each is None or not self._ends else each * max(0, total - self._ends[-1][0])


def step_line(step: int, total: int | None, metrics: Mapping[str, float], eta: float | None = None) -> str:
    """The line of a step; what ``metrics`` lacks is left out. ``eta`` is in seconds."""
    parts = [f"step {step:>{len(str(total))}}/{total}" if total else f"step {step}"]
    shown = (
        ("reward ", names.REWARD, "{:.3f}"),
        ("solved ", names.SOLVE_RATE, "{:.1%}"),
        ("distinct ", names.DISTINCT, "{:.2f}"),
        ("log Z ", names.LOG_Z, "{:+.3f}"),
        ("grad norm ", names.GRAD_NORM, "{:.2g}"),
        ("", names.STEP_TIME, "{:.1f} s/step"),
    )
    parts += [label + form.format(metrics[name]) for label, name, form in shown if name in metrics]
    if missing := metrics.get(names.MISSING):
        parts.append(f"{missing:.0f} rollouts failed (the log says why)")
    if eta:
        parts.append(f"ETA {short_duration(eta)}")
    return "  ".join(parts)


def validation_lines(metrics: Mapping[str, float]) -> list[str]:
    """One line per data source that was validated in this step."""
    lines = []
    for name, (source, samples) in names.match(names.VAL_SOLVE_RATE, metrics).items():
        line = f"validation of {source}  solved {metrics[name]:.1%} (mean of {samples})"
        distinct = metrics.get(names.VAL_DISTINCT.replace("*", source))
        lines.append(line + (f"  distinct {distinct:.2f}" if distinct is not None else ""))
    return lines


@dataclass
class _Phase:
    """A phase under way. ``spoke`` is when it last printed a line, ``announced`` whether it ever did."""

    started: float
    spoke: float
    announced: bool
    task: TaskID | None = None


class _Elapsed(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text.assemble(task.description, " ", (short_duration(task.elapsed or 0), "cyan"))


class RunConsole:
    """Shows a run on ``stream``, from any thread. Close it, or use it in a ``with``, to leave the terminal clean.

    ``now`` is the clock of this process; what an event says of a step's time is of the writer's.
    """

    def __init__(self, stream: TextIO, heartbeat_s: float = HEARTBEAT_S, now: Callable[[], float] = time.monotonic):
        self._stream, self._heartbeat_s, self._now = stream, heartbeat_s, now
        self._clock = StepClock()
        self._phases: dict[str, _Phase] = {}
        self._event_phase: str | None = None
        self._in_steps = False
        self._lock = threading.RLock()
        self._closed = threading.Event()
        self._live: Progress | None = None
        if stream.isatty():
            console = Console(file=stream, highlight=False)
            # stdout and stderr are sent elsewhere by the caller and must stay there.
            self._live = Progress(
                SpinnerColumn(),
                _Elapsed(),
                console=console,
                transient=True,
                redirect_stdout=False,
                redirect_stderr=False,
            )
        else:
            threading.Thread(target=self._beat, name="console-heartbeat", daemon=True).start()

    def __enter__(self) -> "RunConsole":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop the spinner and the heartbeat. The stream stays open; it is the caller's."""
        self._closed.set()
        with self._lock:
            self._phases.clear()
            if self._live:
                with _output_may_be_gone():
                    self._live.stop()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """A phase of the run: its start, a heartbeat while it lasts, and the time it took."""
        self._start(name, announced=True)
        try:
            yield
        except BaseException:
            self._end(name, failed=True)
            raise
        self._end(name)

    def step(self, step: int, total: int | None, metrics: Mapping[str, float], at: float | None = None) -> None:
        """A step of ``total`` ended, at ``at`` (seconds since the epoch, by default now).

        Metrics of a validation alone, as before the first step, make no line of a step.
        """
        validation = validation_lines(metrics)
        with self._lock:
            self._clock.tick(step, self._now() if at is None else at)
            if names.STEP_TIME in metrics or not validation:
                self._in_steps = True
                eta = self._clock.eta(total, only=metrics.get(names.STEP_TIME)) if total else None
                self._print(step_line(step, total, metrics, eta))
            for line in validation:
                self._print(line, "bold")

    def message(self, text: str) -> None:
        """A line of text."""
        self._print(text)

    def error(self, text: str) -> None:
        """A line of text that says what went wrong."""
        self._print(f"error: {text}", "bold red")

    def show(self, event: Mapping[str, Any]) -> None:
        """Show an event (see `events`); one of an unknown kind is left out, so that writers may have more of them.

        Once steps come in, their lines say that things go on: a phase then prints only if it outlasts a heartbeat.
        """
        match event:
            case {"event": "phase", "name": str(name)}:
                self._switch(name)
            case {"event": "step", "step": int(step), "total": int() | None as total, "metrics": dict(metrics)}:
                self._switch(None)
                numbers = {name: value for name, value in metrics.items() if is_number(value)}
                self.step(step, total, numbers, at=event["time"] if is_number(event.get("time")) else None)
            case {"event": "message", "text": str(text)}:
                self.message(text)
            case {"event": "error", "text": str(text)}:
                self.error(text)

    @contextmanager
    def following(
        self, path: str | Path, also: Callable[[Mapping[str, Any]], None] = lambda event: None, poll_s: float = 0.2
    ) -> Iterator[None]:
        """Show the events that are appended to ``path`` from now on, in a thread, until the block ends.

        ``also`` is given each of them too.

        The phase under way at that moment ends with it, as failed if the block raises.
        """
        stop, offset = threading.Event(), end_of(path)

        def show_all() -> None:
            for event in follow(path, stop, offset=offset, poll_s=poll_s):
                self.show(event)
                also(event)

        thread = threading.Thread(target=show_all, name="console-events", daemon=True)
        thread.start()
        failed = True
        try:
            yield
            failed = False
        finally:
            stop.set()
            thread.join(timeout=5)
            self._switch(None, failed)

    def _switch(self, name: str | None, failed: bool = False) -> None:
        """End the phase that the last event began, if it is still under way, and start ``name``, if given."""
        with self._lock:
            if self._event_phase is not None:
                self._end(self._event_phase, failed)
            self._event_phase = name
            if name is not None:
                self._start(name, announced=not self._in_steps)

    def _start(self, name: str, announced: bool) -> None:
        with self._lock:
            phase = self._phases[name] = _Phase(self._now(), self._now(), announced)
            if self._live:
                with _output_may_be_gone():
                    phase.task = self._live.add_task(name, total=None)
                    self._live.start()
            elif announced:
                self._print(f"{name} ...")

    def _end(self, name: str, failed: bool = False) -> None:
        with self._lock:
            phase = self._phases.pop(name, None)
            if phase is None:
                return
            if self._live and phase.task is not None:
                self._live.remove_task(phase.task)
                if not self._phases:
                    # With nothing under way there is nothing live; stopping gives the line back.
                    with _output_may_be_gone():
                        self._live.stop()
            took = short_duration(self._now() - phase.started)
            if failed:
                self._print(f"{name}: failed after {took}", "red")
            elif phase.announced:
                self._print(f"{name}: done in {took}", "green")

    def _beat(self) -> None:
        """For plain output: a line for each phase that has been silent for ``heartbeat_s`` seconds."""
        while not self._closed.wait(self._heartbeat_s / 20):
            with self._lock:
                now = self._now()
                for name, phase in self._phases.items():
                    if now - phase.spoke >= self._heartbeat_s:
                        phase.spoke, phase.announced = now, True
                        self._print(f"{name} ... {short_duration(now - phase.started)}")

    def _print(self, text: str, style: str = "") -> None:
        text = printable(mask(text))
        with self._lock, _output_may_be_gone():
            if self._live:
                self._live.console.print(Text(text, style), soft_wrap=True)
            else:
                self._stream.write(text + "\n")
                self._stream.flush()


def _output_may_be_gone() -> contextlib.suppress:
    """A reader that went away (``| head``), a closed terminal or stream is no reason to end a training run."""
    return contextlib.suppress(OSError, ValueError)
