"""Notice that a process of the run has died or that the run stands still, and say so instead of waiting for ever.

Ray tells of an actor's death whoever asks that actor for something. Some of verl's waits ask nobody: the replay buffer
polls for rollouts that no one makes any more, a socket waits for a peer that is gone.
"""

import os
import re
import select
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import psutil

from verl_ext.faults import ProcessDied, RunFault, Stalled
from verl_ext.processes import descendants, runs, signal_that_ended

POLL_S = 0.5
GRACE_S = 5.0
"""After a death the run has so long to end by itself, with an error of its own or because it is done."""

FAILING_GRACE_S = 20.0
"""As much once it has said that it is failing: verl ends its data queue first."""

ENDING, FAILING = "ending", "ending after an error"
"""The last phase of a run: verl ends its processes, one after the other."""

KINDS = {
    r"ray::(RuntimeEnvAgent|DashboardAgent)": "an agent of Ray's node service",
    r".*/(gcs_server)": "Ray's head service",
    r".*/(raylet)": "Ray's node service",
    r"ray::(\w*TaskRunner\w*)": "the trainer",
    r"ray::(\w*HttpServer)": "a vLLM server",
    r"(VLLM::\S+)": "a vLLM engine process",
    r"ray::(\w*AgentLoopWorker\w*)": "an agent loop worker",
    r"ray::(\w*RewardLoopWorker\w*)": "a reward worker",
    r"ray::(CheckpointEngineWorker)": "a rollout server's weight receiver",
    r"ray::(WorkerDict|\w*Worker)\b": "a training worker",
    r"ray::(TransferQueueController|SimpleStorageUnit)": "a part of the data queue",
    r"ray::(GlobalRequestLoadBalancer)": "the load balancer of the rollouts",
}
"""Start of a process's title -> what it is. If several die at once, the first of them here took the others along.

Only those are here without which a run can't go on and that live as long as it does: Ray's idle workers, those that run
a plain function and actors of an unknown kind may come and go, and Ray's monitors aren't needed.
"""

ENDED_FIRST = "a part of the data queue"
"""What verl ends itself when the trainer fails, before the error gets here."""


@dataclass(frozen=True)
class Member:
    """A process that the run needs. ``parent``: the process id of its parent; ``rank``: its place in :data:`KINDS`."""

    process: psutil.Process
    parent: int
    kind: str
    name: str
    rank: int

    def __str__(self) -> str:
        return f"{self.kind} ({self.name}, pid {self.process.pid})"


def member(process: psutil.Process) -> Member | None:
    """What ``process`` is in the run; None if the run doesn't need it, or it is gone.

    A process that forks has a child with its own title until that child starts a program or ends: it isn't meant.
    """
    found = _by_title(process)
    if found is not None:
        with suppress(psutil.Error):
            parent = process.parent()
            if parent is not None and (above := _by_title(parent)) is not None and above.kind == found.kind:
                return None
    return found


def _by_title(process: psutil.Process) -> Member | None:
    with suppress(psutil.Error):
        title = _title(process)
        for rank, (pattern, kind) in enumerate(KINDS.items()):
            if match := re.match(pattern, title):
                return Member(process, process.ppid(), kind, match[1], rank)
    return None


def _title(process: psutil.Process) -> str:
    """Empty for a process that has given its memory back, on its way to its end."""
    with suppress(psutil.Error):
        return (process.cmdline() or [""])[0]
    return ""


@dataclass(frozen=True)
class Death:
    """``seen``: when it was noticed, by the monotonic clock."""

    member: Member
    signal: str | None
    seen: float

    def __str__(self) -> str:
        return f"{self.member} was ended by {self.signal}" if self.signal else f"{self.member} died"


class Supervisor:
    """Watches the descendants of this process, and the time since the run last told of progress.

    Args:
        end: called once, in a thread of its own, with what is to end the run.
        watchdog_s: seconds without progress that end the run; None: no limit.
        on_stall: called before ``end`` where nothing moves, with the processes that the run needs.
    """

    def __init__(
        self,
        end: Callable[[RunFault], None],
        watchdog_s: float | None,
        on_stall: Callable[[list[Member]], None],
        grace_s: float = GRACE_S,
    ) -> None:
        self._end, self._on_stall, self._watchdog_s, self._grace_s = end, on_stall, watchdog_s, grace_s
        self._members: dict[int, Member] = {}  # by a descriptor that is readable once the process has ended
        self._exits = select.epoll()
        self._deaths: list[Death] = []
        self._phase, self._progress = "starting", time.monotonic()
        self._closing = False
        self._failing_since: float | None = None
        self._lock = threading.Lock()

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watch until the block ends."""
        stop = threading.Event()
        threading.Thread(target=self._watch, args=(stop,), name="supervisor", daemon=True).start()
        try:
            yield
        finally:
            stop.set()

    def progress(self, phase: str) -> None:
        """The run has begun ``phase``."""
        self._phase, self._progress = phase, time.monotonic()

    def closing(self) -> None:
        """The run is done and ends its processes."""
        self._closing = True

    def failing(self, since: float) -> None:
        """The run has met an error, ``since`` (seconds since the epoch), which is on its way to here."""
        self._failing_since = time.monotonic() - (time.time() - since)

    def fault_behind(self, cause: BaseException) -> ProcessDied | None:
        """The death that explains ``cause``, with which the run has ended; None if that speaks for itself."""
        from ray.exceptions import OutOfMemoryError, RayError

        self._look()
        if isinstance(cause, OutOfMemoryError):
            return None  # it says who was ended, and why
        for death in self._deaths if not self._closing else ():
            late = self._failing_since is not None and death.seen > self._failing_since
            own_doing = late and death.member.kind == ENDED_FIRST
            # Ray's message of an actor's death has a line with its process id.
            named = isinstance(cause, RayError) and f"\tpid: {death.member.process.pid}\n" in f"{cause}\n"
            if named or not own_doing:
                return ProcessDied(str(death))
        return None

    def _watch(self, stop: threading.Event) -> None:
        while not stop.is_set():
            self._look()
            now = time.monotonic()
            if self._deaths and not self._closing:
                since = max(self._deaths[0].seen, self._failing_since or 0)
                if now - since > (self._grace_s if self._failing_since is None else FAILING_GRACE_S):
                    return self._end(ProcessDied(str(self._deaths[0])))
            if self._watchdog_s is not None and now - self._progress > self._watchdog_s:
                self._on_stall([m for m in self._members.values() if runs(m.process)])
                return self._end(Stalled(f"no progress in {self._watchdog_s:g} s, in phase {self._phase!r}"))
            self._exits.poll(POLL_S)  # no longer once one ends: the first is the cause

    def _look(self) -> None:
        """Note who is there and who is no more."""
        with self._lock:
            self._note_deaths()
            there = {process: member(process) for process in descendants(psutil.Process()) if runs(process)}
            known = {m.process: descriptor for descriptor, m in self._members.items()}
            for process, found in there.items():
                if found is not None and process not in known:
                    self._watch_over(found)
            for process, descriptor in known.items():
                # Who has ended since is a death, of the next look, and so is who is about to: it has no title any more.
                if there.get(process) is None and _title(process) and runs(process):
                    self._forget(descriptor)

    def _note_deaths(self) -> None:
        gone = [self._forget(descriptor) for descriptor, _ in self._exits.poll(0)]
        deaths = [Death(lost, signal_that_ended(lost.process.pid), time.monotonic()) for lost in gone]
        # Who was killed took along its children, which may be killed with it, and those that ended by themselves.
        dead = {m.process.pid for m in gone}
        self._deaths += sorted(
            deaths, key=lambda death: (death.member.parent in dead, death.signal is None, death.member.rank)
        )

    def _watch_over(self, found: Member) -> None:
        with suppress(ProcessLookupError):
            descriptor = os.pidfd_open(found.process.pid)
            self._members[descriptor] = found
            self._exits.register(descriptor, select.EPOLLIN)

    def _forget(self, descriptor: int) -> Member:
        self._exits.unregister(descriptor)
        os.close(descriptor)
        return self._members.pop(descriptor)
