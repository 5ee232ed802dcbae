"""The console of a run and the event file that feeds it."""

import contextlib
import io
import os
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from recipe.flowrl.common.progress import short_duration
from recipe.flowrl.reporting.console import RunConsole, StepClock, step_line
from recipe.flowrl.reporting.events import EventWriter, end_of, follow

METRICS = {
    "critic/score/mean": 0.4125,
    "train/solve_rate": 0.375,
    "train/distinct_solutions": 1.5,
    "actor/flowrl/log_z": -0.03,
    "actor/grad_norm": 1.234,
    "timing_s/step": 2.0,
}


def eventually(check, timeout_s: float = 10.0) -> None:
    """Wait until ``check()`` holds; fails with its last result if it never does."""
    deadline = time.monotonic() + timeout_s
    while not check() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert check()


class Clock:
    def __init__(self):
        self.seconds = 1000.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def plain() -> Iterator[tuple[RunConsole, io.StringIO, Clock]]:
    """A console whose output is no terminal, with a clock set by hand; it looks for due heartbeats every 5 ms."""
    stream, clock = io.StringIO(), Clock()
    with RunConsole(stream, heartbeat_s=0.1, now=clock) as console:
        yield console, stream, clock


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0s"), (59.4, "59s"), (59.6, "1m00s"), (125, "2m05s"), (3725, "1h02m"), (90_000, "25h00m"), (-1, "0s")],
)
def test_short_duration(seconds, text):
    assert short_duration(seconds) == text


def test_the_line_of_a_step_tells_of_rollouts_that_failed():
    assert "failed" not in step_line(3, 40, METRICS | {"train/missing_rollouts": 0})
    assert "2 rollouts failed" in step_line(3, 40, METRICS | {"train/missing_rollouts": 2})


def test_eta_is_the_mean_of_recent_steps_times_those_to_go():
    clock = StepClock(window=3)
    assert clock.eta(total=10) is None
    clock.tick(1, 100.0)
    assert clock.eta(total=10) is None
    assert clock.eta(total=10, only=2.0) == 18.0
    for step, now in ((2, 104.0), (3, 106.0), (4, 108.0)):
        clock.tick(step, now)
    assert clock.eta(total=10) == pytest.approx(6 * (108 - 100) / 3)
    clock.tick(5, 110.0)
    assert clock.eta(total=10) == pytest.approx(5 * (110 - 104) / 3), "the window has left the slow step behind"
    assert clock.eta(total=5) == 0


def test_eta_after_a_resume_forgets_the_steps_before():
    clock = StepClock()
    clock.tick(8, 0.0)
    clock.tick(9, 1.0)
    clock.tick(6, 500.0)
    assert clock.eta(total=10, only=3.0) == 12.0
    clock.tick(7, 502.0)
    assert clock.eta(total=10) == 6.0


def test_step_line():
    line = "step  7/60  reward 0.412  solved 37.5%  distinct 1.50  log Z -0.030  grad norm 1.2  2.0 s/step  ETA 1m46s"
    assert step_line(7, 60, METRICS, eta=106) == line
    assert step_line(7, None, {"critic/score/mean": 1.0}) == "step 7  reward 1.000"


def test_phase_prints_its_start_a_heartbeat_and_its_end(plain):
    console, stream, clock = plain
    with console.phase("loading vLLM"):
        assert stream.getvalue() == "loading vLLM ...\n"
        clock.seconds += 10
        eventually(lambda: "loading vLLM ... 10s\n" in stream.getvalue())
        clock.seconds += 10
        eventually(lambda: "loading vLLM ... 20s\n" in stream.getvalue())
        clock.seconds += 0.05
        time.sleep(0.05)
    assert stream.getvalue().splitlines() == [
        "loading vLLM ...",
        "loading vLLM ... 10s",
        "loading vLLM ... 20s",
        "loading vLLM: done in 20s",
    ]


def test_phase_that_raises_says_so_and_lets_the_error_pass(plain):
    console, stream, clock = plain
    with pytest.raises(KeyboardInterrupt), console.phase("starting Ray"):
        clock.seconds += 3
        raise KeyboardInterrupt
    assert stream.getvalue().splitlines()[-1] == "starting Ray: failed after 3s"


def test_every_line_is_flushed(tmp_path):
    with (tmp_path / "out").open("w") as stream, RunConsole(stream) as console:
        console.message("run directory /runs/1")
        assert (tmp_path / "out").read_text() == "run directory /runs/1\n"


def test_events_of_a_run_become_lines(plain):
    console, stream, clock = plain

    def show(event: str, **fields) -> None:
        console.show({"time": clock.seconds, "event": event} | fields)

    show("phase", name="loading vLLM")
    clock.seconds += 0.01
    show("phase", name="validation")
    validation = {"val-core/openai/gsm8k/acc/mean@4": 0.25, "val/openai/gsm8k/distinct_solutions": 1.5}
    show("step", step=0, total=3, metrics=validation)
    clock.seconds += 2
    show("phase", name="rollout")
    show("step", step=1, total=3, metrics={"timing_s/step": 2.0})
    show("phase", name="update")
    show("news of a later version", text="not for us")
    console.show({"time": clock.seconds + 4, "event": "step", "step": 2, "total": 3, "metrics": {"timing_s/step": 2.0}})
    show("error", text="out of memory")
    assert stream.getvalue().splitlines() == [
        "loading vLLM ...",
        "loading vLLM: done in 0s",
        "validation ...",
        "validation: done in 0s",
        "validation of openai/gsm8k  solved 25.0% (mean of 4)  distinct 1.50",
        "rollout ...",
        "rollout: done in 0s",
        "step 1/3  2.0 s/step  ETA 4s",
        # No line for the update: steps have begun, and it was short.
        "step 2/3  2.0 s/step  ETA 3s",
        "error: out of memory",
    ]


def test_long_phase_between_steps_is_heard_of(plain):
    console, stream, clock = plain
    console.show({"time": 0.0, "event": "step", "step": 1, "total": None, "metrics": {}})
    console.show({"time": 0.0, "event": "phase", "name": "rollout"})
    clock.seconds += 30
    eventually(lambda: "rollout ... 30s" in stream.getvalue())
    console.show({"time": 0.0, "event": "phase", "name": "update"})
    assert stream.getvalue().splitlines() == ["step 1", "rollout ... 30s", "rollout: done in 30s"]


@pytest.mark.parametrize("fails", [False, True])
def test_following_a_file_shows_new_events_only_and_ends_the_last_phase(tmp_path, plain, fails):
    console, stream, _ = plain
    writer = EventWriter(tmp_path / "events.jsonl")
    writer.write("message", text="of an earlier launch")
    seen = []
    with contextlib.suppress(RuntimeError), console.following(writer.path, seen.append, poll_s=0.01):
        EventWriter(writer.path).write("phase", name="starting Ray")
        eventually(lambda: "starting Ray ..." in stream.getvalue())
        writer.write("message", text="written just before the end")
        if fails:
            raise RuntimeError
    end = "starting Ray: failed after 0s" if fails else "starting Ray: done in 0s"
    assert stream.getvalue().splitlines() == ["starting Ray ...", "written just before the end", end]
    assert [event["event"] for event in seen] == ["phase", "message"]


def test_reader_that_goes_away_does_not_end_the_run():
    read, write = os.pipe()
    with os.fdopen(write, "w", buffering=1) as stream, RunConsole(stream) as console:
        os.close(read)
        with console.phase("rollout"):
            console.message("nobody reads this")
        # What the stream could not write would come up again when it is closed.
        os.dup2(os.open(os.devnull, os.O_WRONLY), write)


def test_on_a_terminal_the_phase_is_live_and_the_lines_stay():
    master, slave = os.openpty()
    shown = bytearray()

    def read() -> None:
        try:
            while data := os.read(master, 4096):
                shown.extend(data)
        except OSError:
            pass

    reader = threading.Thread(target=read)
    reader.start()
    with os.fdopen(slave, "w", encoding="utf-8") as stream, RunConsole(stream) as console:
        with console.phase("loading [vLLM]"):
            eventually(lambda: b"loading [vLLM]" in shown)
            console.message("a line")
        for step in (1, 2):
            console.show({"event": "phase", "name": "rollout"})
            eventually(lambda: b"rollout" in shown)
            console.show({"event": "step", "step": step, "total": 2, "metrics": METRICS})
    reader.join(timeout=5)
    os.close(master)
    hidden, back, line = shown.rfind(b"\x1b[?25l"), shown.rfind(b"\x1b[?25h"), shown.find(b"step 2/2")
    assert 0 <= hidden < back < line, "the cursor is hidden while something is live, and only then"
    kept = [line.rpartition("\x1b[2K")[2] for line in shown.decode().replace("\r\n", "\n").split("\n")]
    kept = [re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|\r", "", line) for line in kept]
    assert {"a line", "loading [vLLM]: done in 0s", step_line(2, 2, METRICS)} <= set(kept)


def test_events_round_trip(tmp_path):
    path = tmp_path / "run" / "events.jsonl"
    writer = EventWriter(path)
    writer.write("step", step=1, total=60, metrics={"actor/grad_norm": float("inf")})
    writer.write("message", text="two\nlines, ünïcode \ud800")
    stop = threading.Event()
    stop.set()
    first, second = follow(path, stop)
    assert abs(first.pop("time") - time.time()) < 60
    assert first == {"event": "step", "step": 1, "total": 60, "metrics": {"actor/grad_norm": float("inf")}}
    assert second["text"] == "two\nlines, ünïcode \ud800"


def test_half_written_line_is_read_once_it_is_complete(tmp_path):
    path, stop = tmp_path / "events.jsonl", threading.Event()
    events = follow(path, stop, poll_s=0.01)
    threading.Timer(0.05, path.write_text, ['{"event": "message", "text": "a"}\n{"event": "mess']).start()
    assert next(events)["text"] == "a"

    def complete() -> None:
        with path.open("a") as file:
            file.write('age", "text": "b"}\n{"event": "never comp')

    threading.Timer(0.05, complete).start()
    assert next(events)["text"] == "b"
    stop.set()
    assert list(events) == []


def test_writer_after_a_crash_loses_only_the_broken_line(tmp_path):
    path, stop = tmp_path / "events.jsonl", threading.Event()
    EventWriter(path).write("message", text="before")
    with path.open("a") as file:
        file.write('{"event": "step", "st')
    size = end_of(path)
    EventWriter(path).write("message", text="after")
    stop.set()
    before, broken, after = follow(path, stop)
    assert (before["text"], after["text"]) == ("before", "after")
    assert "a line is not an event" in broken["text"] and broken["event"] == "message"
    assert [event["text"] for event in follow(path, stop, offset=size)] == ["after"]


def test_file_that_never_comes(tmp_path: Path):
    stop = threading.Event()
    threading.Timer(0.05, stop.set).start()
    assert list(follow(tmp_path / "none.jsonl", stop, poll_s=0.01)) == [] and end_of(tmp_path / "none.jsonl") == 0
