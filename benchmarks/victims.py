"""A small training run whose processes are killed, and what can be seen of how it ends."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from benchmarks.launches import SMALL_BATCH
from benchmarks.machine import PROJECT
from verl_ext.checkpoint_files import TRACKER
from verl_ext.files import open_own
from verl_ext.guardian import run_directory
from verl_ext.processes import descendants, runs, shared_memory_of

LIMIT_S = 60.0
"""A run that can't go on has to end within so many seconds of a death."""

SMALL = [
    "experiment=countdown_cpu",
    *SMALL_BATCH,
    "trainer.val_before_train=false",
    "trainer.test_freq=-1",
    "trainer.save_freq=1",
    "trainer.total_training_steps=10000",
]
"""Steps of seconds, each saved, until somebody ends it."""

TITLES = {
    "main process": r"^$",  # the one that is started
    "guardian": r"verl_ext\.guardian",
    "trainer": r"^ray::\w*TaskRunner",
    "training worker": r"^ray::WorkerDict",
    "weight receiver": r"^ray::CheckpointEngineWorker",
    "vLLM server": r"^ray::\w*HttpServer",
    "vLLM engine": r"^VLLM::EngineCore",
    "agent loop worker": r"^ray::\w*AgentLoopWorker",
    "reward worker": r"^ray::RewardLoopWorker",
    "data storage": r"^ray::SimpleStorageUnit",
    "data controller": r"^ray::TransferQueueController",
    "load balancer": r"^ray::GlobalRequestLoadBalancer",
    "gcs": r"/gcs_server ",
    "raylet": r"/raylet/raylet ",
    "runtime env agent": r"^ray::RuntimeEnvAgent",
    "log monitor": r"log_monitor\.py",
}
"""Kind of process -> what its command line matches."""

RECOVERS = {"guardian", "log monitor"}
"""The run goes on without these."""


@dataclass
class Outcome:
    """What a kill led to. ``left``: what was left of the run, which should be nothing."""

    seconds: float
    status: int | None
    message: str
    left: list[str]


class Victim:
    """A launch of the run in ``run_dir``; the next one there continues it."""

    def __init__(self, run_dir: Path, *overrides: str) -> None:
        self.run_dir, self.events = run_dir, run_dir / "events.jsonl"
        run_dir.mkdir(parents=True, exist_ok=True)
        self._output = os.fdopen(open_own(run_dir / "console.log", os.O_TRUNC), "w")
        self._before = self.events.stat() if self.events.exists() else None
        self.started = time.time()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "recipe.flowrl.main_flowrl", *SMALL, f"run_dir={run_dir}", *overrides],
            cwd=PROJECT,
            stdout=self._output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    @property
    def output(self) -> str:
        return (self.run_dir / "console.log").read_text()

    @property
    def saved_step(self) -> int:
        """After which step the next launch has to go on; 0: none was saved."""
        tracker = self.run_dir / "checkpoints" / TRACKER
        return int(tracker.read_text()) if tracker.exists() else 0

    @property
    def resumed_step(self) -> int:
        """After which step this launch went on."""
        match = re.search(r"continuing after step (\d+)", self.output)
        return int(match[1]) if match else 0

    @property
    def first_step(self) -> int | None:
        """The first step that has ended in this launch."""
        return next((event["step"] for event in self._events() if event["event"] == "step"), None)

    def wait_for(self, phase: str, times: int = 1, timeout_s: float = 240) -> None:
        """Until ``phase`` has begun for so many times in this launch; ``step``: until so many steps have ended.

        Raises:
            RuntimeError: the run has ended, or it took too long.
        """
        deadline = time.monotonic() + timeout_s
        while self._count(phase) < times:
            if self.process.poll() is not None:
                raise RuntimeError(f"ended with {self.process.returncode} before {phase}:\n{self.output[-3000:]}")
            if time.monotonic() > deadline:
                raise RuntimeError(f"no {phase} in {timeout_s:.0f} s:\n{self.output[-3000:]}")
            time.sleep(0.01)

    def now(self) -> str:
        """The phase that the run is in."""
        events = self._events()
        return events[-1].get("name", f"after step {events[-1].get('step')}") if events else "before Ray"

    def find(self, kind: str) -> psutil.Process | None:
        """A process of this kind."""
        if kind == "main process":
            return psutil.Process(self.process.pid)
        for process in descendants(psutil.Process(self.process.pid)):
            with suppress(psutil.Error):
                if re.search(TITLES[kind], " ".join(process.cmdline())) and runs(process):
                    return process
        return None

    def kill(self, process: psutil.Process, signum: int = signal.SIGKILL) -> Outcome:
        """Send a signal, and wait until the run has ended and its guardian is gone."""
        main = psutil.Process(self.process.pid)
        guardian, everyone = self.find("guardian"), [main, *descendants(main)]
        segments, sockets, run_id = shared_memory_of(everyone), _sockets_of(everyone), _run_id(guardian)
        sent = time.monotonic()
        process.send_signal(signum)
        status = None
        while time.monotonic() - sent < 2 * LIMIT_S and (status is None or (guardian and runs(guardian))):
            status = self.process.poll()
            everyone += [new for new in descendants(main) if new not in everyone] if status is None else []
            segments |= shared_memory_of(everyone)
            time.sleep(0.1)
        seconds = time.monotonic() - sent
        left = [f"process {p.pid}" for p in everyone if runs(p)]
        left += [str(segment) for segment in segments if segment.exists()]
        left += [path for path in sockets if os.path.exists(path)]
        if run_id is not None and run_directory(run_id).exists():
            left.append(str(run_directory(run_id)))
        lines = [line for line in self.output.splitlines() if line.startswith("error: ")]
        return Outcome(seconds, status, "\n".join(lines), left)

    def end(self) -> None:
        """End it if it still goes on."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(LIMIT_S)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self._output.close()

    def _events(self) -> list[dict]:
        """Those of this launch."""
        if not self.events.exists():
            return []
        with self.events.open("rb") as file:
            # A run that starts from scratch begins another file.
            if self._before and self._before.st_ino == os.fstat(file.fileno()).st_ino:
                file.seek(self._before.st_size)
            return [json.loads(line) for line in file.read().splitlines(keepends=True) if line.endswith(b"\n")]

    def _count(self, phase: str) -> int:
        events = self._events()
        if phase == "step":
            return sum(event["event"] == "step" for event in events)
        return sum(event["event"] == "phase" and event["name"] == phase for event in events)


def _sockets_of(processes: list[psutil.Process]) -> set[str]:
    """The Unix sockets with a path that ``processes`` listen on."""
    paths = set()
    for process in processes:
        with suppress(psutil.Error):
            paths.update(c.laddr for c in process.net_connections(kind="unix") if str(c.laddr).startswith("/"))
    return paths


def _run_id(guardian: psutil.Process | None) -> str | None:
    """From the name of the directory that it looks after."""
    match = re.search(r"verl-(\w+)", " ".join(guardian.cmdline())) if guardian else None
    return match[1] if match else None
