"""Processes that answer requests and can be killed, for work that may hang or take all memory. No package needed."""

import json
import os
import queue
import resource
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from verl_ext.processes import python_path

_START_LIMIT_S = 120.0
_STALL_LIMIT_S = 60.0
"""Wall-clock seconds that a request may take beyond its CPU time: a machine that gives less doesn't work."""

_ATTEMPTS = 2
_CRASHES = tuple(-number for number in (signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGILL))
"""Exit statuses of a process that what it computed brought down; other signals come from outside."""


class OverLimit(Exception):
    """The request takes more CPU time, memory or stack than a worker has: the request is to blame."""


class WorkerFailed(Exception):
    """The worker didn't start, was killed, got no CPU time, or reported an error: the request isn't to blame."""


class _Ended(WorkerFailed):
    def __init__(self, status: int) -> None:
        super().__init__(f"exit status {status}")
        self.status = status


class WorkerPool:
    """Up to ``size`` processes that run the module ``module``, which calls :func:`serve`. Safe to use from threads.

    Args:
        module: dotted name; run with ``python -m``.
        size: processes at most; more callers than that wait.
        limit_s: seconds of CPU time for a request. A busy machine takes none of it away.
    """

    def __init__(self, module: str, size: int, limit_s: float) -> None:
        self.module, self.limit_s = module, limit_s
        self._idle: queue.LifoQueue[_Worker | None] = queue.LifoQueue()  # the last used first: few get started
        for _ in range(size):
            self._idle.put(None)

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """Send a JSON object, return the reply. A worker that failed is replaced, and the new one asked once more.

        Raises:
            OverLimit: the request takes more than a worker has.
            WorkerFailed: both attempts failed.
        """
        worker, healthy = self._idle.get(), False
        try:
            for attempt in range(1, _ATTEMPTS + 1):
                try:
                    worker = worker or _Worker(self.module)
                    reply = worker.ask(request, self.limit_s)
                    break
                except WorkerFailed as error:
                    if worker is not None:
                        worker.kill()
                        worker = None
                    if attempt == _ATTEMPTS:
                        if isinstance(error, _Ended) and error.status in _CRASHES:
                            raise OverLimit(str(error)) from error
                        raise
            healthy = True
        finally:
            self._idle.put(worker if healthy else None)  # first: whatever fails below, the next caller gets this place
            if worker is not None and not healthy:
                worker.kill()
        if "error" in reply:
            raise WorkerFailed(reply["error"])
        return reply

    def close(self) -> None:
        """End the workers that are idle."""
        for _ in range(self._idle.qsize()):
            worker = self._idle.get()
            if worker is not None:
                worker.kill()
            self._idle.put(None)


class _Worker:
    _starting = threading.Lock()  # one at a time: a start costs a second of CPU, and the first callers come together

    def __init__(self, module: str) -> None:
        with self._starting:
            try:
                self._process = subprocess.Popen(
                    [sys.executable, "-m", module],
                    bufsize=0,  # with a buffer, closing the pipe of a dead worker writes what is left in it, and fails
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL,
                    env={**os.environ, "PYTHONPATH": python_path(), "OMP_NUM_THREADS": "1"},
                    start_new_session=True,  # Ctrl-C at the terminal is the parent's to handle
                )
            except OSError as error:  # neither a process nor memory is left
                raise WorkerFailed(f"it can't be started: {error}") from error
            self._buffer = b""
            try:
                self._read_line(_START_LIMIT_S)
            except BaseException as error:
                self.kill()
                if isinstance(error, WorkerFailed):  # no request is to blame
                    raise WorkerFailed(f"it can't be started: {error}") from error
                raise

    def ask(self, request: dict[str, Any], limit_s: float) -> dict[str, Any]:
        try:
            _write(self._process.stdin.fileno(), json.dumps([limit_s, request]).encode() + b"\n")
        except BrokenPipeError as error:
            raise WorkerFailed("it was gone") from error
        try:
            reply = json.loads(self._read_line(limit_s + _STALL_LIMIT_S))
        except _Ended as ended:
            if ended.status == -signal.SIGPROF:
                raise OverLimit("CPU time") from ended
            raise
        if "over_limit" in reply:
            raise OverLimit(reply["over_limit"])
        return reply

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()
        self._process.stdin.close()
        self._process.stdout.close()

    def _read_line(self, limit_s: float) -> bytes:
        descriptor, deadline = self._process.stdout.fileno(), time.monotonic() + limit_s
        poll = select.poll()  # select() takes no descriptor above 1023
        poll.register(descriptor, select.POLLIN)
        while b"\n" not in self._buffer:
            if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
                raise WorkerFailed(f"no reply within {limit_s:g} s")
            chunk = os.read(descriptor, 65536)
            if not chunk:
                raise _Ended(self._process.wait())
            self._buffer += chunk
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line


def _write(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]


def serve(answer: Callable[[dict[str, Any]], dict[str, Any]], memory_bytes: int) -> None:
    """Be a worker: answer requests from stdin until it ends.

    Args:
        answer: request to reply. An exception is reported to the caller and the worker lives on; one that takes more
            CPU time than the caller grants ends the process.
        memory_bytes: of address space that this process may take.
    """
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints is no reply
    print("ready", file=replies, flush=True)
    for line in sys.stdin:
        limit_s, request = json.loads(line)
        # The default action of SIGPROF ends the process even inside a C function, and where the parent is gone.
        signal.setitimer(signal.ITIMER_PROF, limit_s)
        try:
            reply = answer(request)
        except (MemoryError, RecursionError) as error:
            reply = {"over_limit": type(error).__name__}
        except Exception as error:
            reply = {"error": f"{type(error).__name__}: {str(error)[:200]}"}
        signal.setitimer(signal.ITIMER_PROF, 0)
        print(json.dumps(reply), file=replies, flush=True)
