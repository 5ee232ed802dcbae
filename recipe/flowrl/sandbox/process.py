"""Run one process within bounds of time, output and threads, and leave nothing of it behind."""

import os
import resource
import selectors
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from recipe.flowrl.sandbox.outcome import Limits, Status

_POLL_S = 0.05
_CHUNK = 65536
_STACK_BYTES = 256 * 2**20  # recursion is common in solutions, and Python's uses the C stack
_OPEN_FILES = 64
_ENDING_S = 5.0
"""In which what was killed has to be gone."""
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_CPU_TIME_ENDED = (-signal.SIGXCPU, 128 + signal.SIGXCPU)  # of a process, and as bubblewrap passes it on


@dataclass(frozen=True)
class Ended:
    """How a process ended."""

    exceeded: Status | None
    """The limit for which it was killed; None if it ended by itself, or somebody else ended it."""
    returncode: int
    """As ``subprocess`` has it: negative for a signal."""
    cpu_s: float
    """Of the watched process, when it was last looked at."""
    stdout: str

    @property
    def status(self) -> Status:
        """In the words of an outcome."""
        if self.returncode in _CPU_TIME_ENDED:
            return self.exceeded or Status.TIMED_OUT
        return self.exceeded or (Status.FINISHED if self.returncode == 0 else Status.FAILED)


@dataclass
class _Seen:
    """What is known of a process so far."""

    stdout: bytearray = field(default_factory=bytearray)
    cpu_s: float = 0.0


def kill_group(pid: int) -> None:
    """Kill the process group that ``pid`` leads."""
    with suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


def run_bounded(
    command: Sequence[str],
    stdin: bytes,
    limits: Limits,
    pass_fds: Sequence[int] = (),
    stderr: int = subprocess.DEVNULL,
    watched: Callable[[int], int | None] = lambda pid: pid,
    kill: Callable[[int], None] = kill_group,
) -> Ended:
    """Run ``command`` to its end, or until it exceeds a limit and is killed. It is waited for in either case.

    Args:
        command: argument list.
        stdin: all of its input. It needn't read it.
        limits: those of wall clock, silence, output and threads hold here; the others are the caller's to set.
        pass_fds: file descriptors that it inherits.
        stderr: a file descriptor.
        watched: from the process's id to the id of the process whose threads are counted; None while there is none.
        kill: ends the process with this id and all below it; called again until it is gone.

    Raises:
        OSError: the command can't be started.
    """
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=stderr,
        pass_fds=pass_fds,
        start_new_session=True,
        env={"PATH": "/usr/bin:/bin:/usr/sbin:/sbin"},  # nothing of the trainer's environment: keys, tokens, addresses
    )
    exceeded, seen, ended = None, _Seen(), None
    try:
        ended = os.pidfd_open(process.pid)
        exceeded = _converse(process, ended, stdin, limits, watched, seen)
    finally:
        _wait(process, ended, kill)
        if ended is not None:
            os.close(ended)
    return Ended(exceeded, process.returncode, seen.cpu_s, seen.stdout[: limits.output_bytes].decode(errors="replace"))


def _converse(
    process: subprocess.Popen,
    ended: int,
    stdin: bytes,
    limits: Limits,
    watched: Callable[[int], int | None],
    seen: "_Seen",
) -> Status | None:
    """Feed the process and take what it prints, until it has ended; returns the limit it exceeded."""
    started = heard = looked = time.monotonic()
    to_write = memoryview(stdin)
    with selectors.PollSelector() as selector, process.stdin, process.stdout:
        for pipe in (process.stdin, process.stdout):
            os.set_blocking(pipe.fileno(), False)
            os.fchmod(pipe.fileno(), 0o666)  # for programs with an id of their own that open /dev/stdin
        selector.register(process.stdout, selectors.EVENT_READ)
        selector.register(process.stdin, selectors.EVENT_WRITE)
        selector.register(ended, selectors.EVENT_READ)
        while True:  # it may close its stdout and go on
            ready = {key.fileobj for key, _ in selector.select(_POLL_S)}
            if process.stdin in ready:
                to_write = _write(process.stdin, to_write, selector)
            if process.stdout in ready:
                chunk = os.read(process.stdout.fileno(), _CHUNK)
                seen.stdout += chunk
                if b"\n" in chunk:
                    heard = time.monotonic()
                if not chunk:
                    _done(process.stdout, selector)
                if len(seen.stdout) > limits.output_bytes:
                    return Status.TOO_MUCH_OUTPUT
            elif ended in ready:  # all that it printed has been read
                return None
            now = time.monotonic()
            if now - started > limits.wall_s or (limits.silence_s is not None and now - heard > limits.silence_s):
                return Status.TIMED_OUT
            if now - looked > _POLL_S:
                looked = now
                threads, seen.cpu_s = _threads_and_cpu(watched(process.pid)) or (0, seen.cpu_s)
                if threads > limits.threads:
                    return Status.TOO_MANY_THREADS


def _wait(process: subprocess.Popen, ended: int | None, kill: Callable[[int], None]) -> None:
    """Kill the process unless it has ended, and take its status.

    The group is killed also after it has ended: what it started may have outlived it.
    """
    deadline, pid = time.monotonic() + _ENDING_S, process.pid
    with selectors.PollSelector() as selector:
        if ended is not None:
            selector.register(ended, selectors.EVENT_READ)
        while not selector.select(0) and time.monotonic() < deadline:
            kill(pid)
            selector.select(_POLL_S / 5)
    kill_group(pid)
    process.wait()


def _write(pipe: IO[bytes], data: memoryview, selector: selectors.BaseSelector) -> memoryview:
    """Write what the pipe takes; returns the rest. The pipe is closed after the last, or if nobody reads it."""
    try:
        data = data[os.write(pipe.fileno(), data[:_CHUNK]) :] if data else data
    except BlockingIOError:
        return data
    except BrokenPipeError:
        data = data[:0]
    if not data:
        _done(pipe, selector)
    return data


def _done(pipe: IO[bytes], selector: selectors.BaseSelector) -> None:
    selector.unregister(pipe)
    pipe.close()


def _threads_and_cpu(pid: int | None) -> tuple[int, float] | None:
    """How many threads a process has, and how many seconds of CPU time it has used."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split() if pid is not None else []
    except OSError:
        return None
    return (int(fields[17]), (int(fields[11]) + int(fields[12])) / _TICKS_PER_S) if fields else None


def limited(limits: Limits) -> list[str]:
    """The beginning of a command that runs the rest within the limits that the kernel keeps."""
    return [
        "prlimit",
        f"--as={limits.memory_bytes}",
        f"--cpu={limits.cpu_s}:{limits.cpu_s + 1}",
        f"--fsize={limits.file_bytes}",
        f"--stack={_stack(limits)}:",  # the program may raise it, as is common, within its memory
        f"--nofile={_OPEN_FILES}",
        "--core=0",
        "--memlock=0",
        "--msgqueue=0",
        "--sigpending=256",
    ]


def _stack(limits: Limits) -> int:
    most = resource.getrlimit(resource.RLIMIT_STACK)[1]
    wanted = min(_STACK_BYTES, limits.memory_bytes // 2)
    return wanted if most == resource.RLIM_INFINITY else min(wanted, most)


def only_child(pid: int) -> int | None:
    """The id of the process's child, None if it has none."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return None
    return int(children[0]) if children else None
