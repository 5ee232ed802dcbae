"""A small process that outlives its run: it ends what a killed run leaves behind, and a run that can't end itself.

``kill -9``, or an abort in native code, gives a process no chance to clean up, and Ray's and vLLM's processes go on for
minutes. The guardian looks on from a session of its own, so that Ctrl-C or a kill of the process group doesn't reach
it. Standard library and psutil only: it starts fast and stays small.
"""

import argparse
import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from verl_ext.processes import SHARED_MEMORY, descendants, end, python_path, runs, shared_memory_of

RUN_ID = "VERL_EXT_RUN_ID"
"""Environment variable that all processes of a run on this machine share."""

POLL_S = 1.0
SYNC_MEMORY = "verl_weights_*"
"""verl's shared memory of the weight sync. What removes it otherwise dies with the worker where Ray ends that."""

_PREFIX = "verl-"


def run_directory(run_id: str) -> Path:
    """Where a run keeps its sockets, under the system's temporary directory."""
    return Path(tempfile.gettempdir()) / f"{_PREFIX}{run_id}"


class Guardian:
    """Starts the guardian of this process, and tells it what goes on.

    Sets :data:`RUN_ID`, and where vLLM and, unless ``shared_ray``, Ray keep their sockets and files, which is the run's
    :func:`run_directory`; so do the sockets of the weight sync. Make it before Ray starts.

    Args:
        keep_ray_logs: where Ray's own logs go when the run fails; None where Ray isn't the run's own.
    """

    def __init__(self, keep_ray_logs: Path | None) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix=_PREFIX))
        os.environ[RUN_ID] = self.directory.name.removeprefix(_PREFIX)
        os.environ["VLLM_RPC_BASE_PATH"] = str(self.directory)
        if keep_ray_logs is not None:
            os.environ["RAY_TMPDIR"] = str(self.directory)
        self._keep_ray_logs = keep_ray_logs
        self._start()

    @property
    def pid(self) -> int:
        return self._process.pid

    def ensure(self) -> bool:
        """Start it again if it is gone; returns whether it was."""
        gone = self._process.poll() is not None
        if gone:
            self._start()
        return gone

    def expect_end(self, within_s: float, reason: str) -> None:
        """The run is about to end, because of ``reason``: after ``within_s`` seconds it is killed."""
        self._tell({"within_s": within_s, "reason": reason})

    def dismiss(self, failed: bool) -> None:
        """Nothing is left to end: remove the run's files outside its directory. The guardian goes."""
        remove_files(self.directory, self._keep_ray_logs if failed else None)
        self._tell({"done": True})
        self._pipe.close()
        self._process.wait()

    def _start(self) -> None:
        command = [sys.executable, "-m", "verl_ext.guardian", str(os.getpid()), str(self.directory)]
        command += [str(self._keep_ray_logs)] if self._keep_ray_logs else []
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
            env=os.environ | {"PYTHONPATH": python_path()},
        )
        assert self._process.stdin is not None
        self._pipe = self._process.stdin

    def _tell(self, message: dict[str, Any]) -> None:
        with suppress(BrokenPipeError):
            self._pipe.write(json.dumps(message).encode() + b"\n")
            self._pipe.flush()


def remove_files(directory: Path, keep_ray_logs: Path | None) -> None:
    """Remove a run's directory of sockets, and shared memory of weight syncs that nobody uses.

    Ray's logs are copied to ``keep_ray_logs`` before.
    """
    for logs in directory.glob("ray/session_*/logs"):
        if keep_ray_logs is not None and not logs.parent.is_symlink():  # Ray's session_latest
            with suppress(OSError):
                shutil.copytree(logs, keep_ray_logs, dirs_exist_ok=True, symlinks=True)
    shutil.rmtree(directory, ignore_errors=True)
    mapped = shared_memory_of(psutil.process_iter())
    for segment in set(SHARED_MEMORY.glob(SYNC_MEMORY)) - mapped:
        with suppress(OSError):
            segment.unlink()


def of_run(run_id: str) -> list[psutil.Process]:
    """The processes that have ``run_id`` in their environment, but for this one."""
    wanted, found = f"{RUN_ID}={run_id}".encode(), []
    for process in psutil.process_iter():
        with suppress(OSError):
            variables = Path(f"/proc/{process.pid}/environ").read_bytes().split(b"\0")
            if wanted in variables and process.pid != os.getpid():
                found.append(process)
    return found


@dataclass
class Orders:
    """What the run has said on the pipe ``source``, a JSON object a line (:meth:`Guardian._tell`)."""

    source: int
    done: bool = False
    """The run has ended by itself."""
    closed: bool = False
    """The run's end of the pipe is closed."""
    deadline: float | None = None
    """When the run is to have ended, on the monotonic clock."""
    reason: str | None = None
    """Why it is to end: the first that was given, which is the cause."""
    _rest: bytes = b""

    def listen(self, wait_s: float) -> None:
        """Take in what has been said, or is within ``wait_s`` seconds."""
        if not select.select([self.source], [], [], wait_s)[0]:
            return
        data = os.read(self.source, 65536)
        self.closed = not data
        *lines, self._rest = (self._rest + data).split(b"\n")
        for message in map(json.loads, lines):
            if message.get("done"):
                self.done = True
            elif self.deadline is None:
                self.deadline, self.reason = time.monotonic() + message["within_s"], message["reason"]

    @property
    def overdue(self) -> bool:
        return self.deadline is not None and time.monotonic() > self.deadline


def guard(pid: int, run_id: str) -> str | None:
    """Look on until the run with main process ``pid`` is over, or its time to end is up. Then nothing of it is left.

    Returns:
        What it died of; None if it ended by itself.
    """
    orders = Orders(sys.stdin.fileno())
    family = watch(pid, orders)
    if orders.done:
        return None
    sweep(family, run_id)
    return orders.reason or f"the main process (pid {pid}) died"


def watch(pid: int, orders: Orders) -> set[psutil.Process]:
    """Look on until process ``pid`` is over, has said that it is done, or is overdue.

    Returns:
        The process and its descendants, also those that have lost their parent meanwhile.
    """
    try:
        run = psutil.Process(pid)
    except psutil.NoSuchProcess:
        return set()
    family = {run}
    while not (orders.done or orders.closed or orders.overdue) and runs(run):
        orders.listen(POLL_S)
        family = {process for process in family | set(descendants(run)) if runs(process)}
    return family


def sweep(family: set[psutil.Process], run_id: str) -> None:
    """End ``family``, its descendants, and whatever has ``run_id`` in its environment, until nothing of it runs."""
    family = family.union(*map(descendants, family)) - {psutil.Process()}
    while alive := [process for process in family | set(of_run(run_id)) if runs(process)]:
        end(alive, grace_s=3.0)


def main(arguments: list[str]) -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m verl_ext.guardian", description=__doc__.split("\n")[0])
    parser.add_argument("pid", type=int, help="the run's main process")
    parser.add_argument("directory", type=Path, help="what the run keeps outside its own directory")
    parser.add_argument("keep_ray_logs", type=Path, nargs="?", help="where Ray's logs go")
    options = parser.parse_args(arguments)
    reason = guard(options.pid, options.directory.name.removeprefix(_PREFIX))
    if reason is not None:
        remove_files(options.directory, options.keep_ray_logs)
        with suppress(OSError):  # the terminal may be gone
            print(f"error: {reason}; its processes have been ended", file=sys.stderr, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
