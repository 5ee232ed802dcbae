"""Find and end the processes of a run, also those that lost their parent, and the shared memory that they hold."""

import ctypes
import os
import signal
import time
from collections.abc import Callable, Collection, Iterable
from contextlib import suppress
from pathlib import Path

import psutil

_PR_SET_CHILD_SUBREAPER = 36
SHARED_MEMORY = Path("/dev/shm")
Wait = Callable[..., tuple[list[psutil.Process], list[psutil.Process]]]


def python_path() -> str:
    """``PYTHONPATH`` with which another Python imports this package, wherever it is started."""
    project = str(Path(__file__).resolve().parents[1])
    return os.pathsep.join(filter(None, [project, os.environ.get("PYTHONPATH")]))


def adopt_orphans() -> None:
    """Make this process the parent of every descendant whose own parent ends (Linux ``prctl(2)``).

    Ray's workers and vLLM's engine processes outlive the process that started them, for minutes; adopted, they can be
    found and ended.

    Raises:
        OSError: the kernel refused.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")


def end_descendants(grace_s: float = 3.0, spare: Collection[int] = ()) -> int:
    """Terminate all descendants, then kill those that are left after ``grace_s`` seconds.

    Args:
        grace_s: seconds between the two.
        spare: process ids that are left alone.

    Returns:
        How many there were.
    """
    ended: set[int] = set()
    while processes := [p for p in descendants(psutil.Process()) if runs(p) and p.pid not in spare]:
        ended.update(process.pid for process in processes)
        end(processes, grace_s)
    return len(ended)


def end(processes: Collection[psutil.Process], grace_s: float, wait: Wait = psutil.wait_procs) -> None:
    """Terminate ``processes``, kill those that are left after ``grace_s`` seconds, and remove their shared memory.

    A segment of shared memory is removed by the process that made it, or by a helper of that process's, unless both
    are killed.

    Args:
        processes: they need not be ours.
        grace_s: seconds between the two.
        wait: psutil's takes the status of a child of ours; :func:`wait_and_leave` doesn't.
    """
    segments = shared_memory_of(processes)
    for process in processes:
        _signal(process, signal.SIGTERM)
    _, alive = wait(processes, timeout=grace_s)
    for process in alive:
        _signal(process, signal.SIGKILL)
    wait(alive, timeout=grace_s)
    for segment in segments:
        with suppress(OSError):
            segment.unlink()


def wait_and_leave(
    processes: Collection[psutil.Process], timeout: float
) -> tuple[list[psutil.Process], list[psutil.Process]]:
    """``psutil.wait_procs`` for children whose status somebody else waits for: the gone and those that still run."""
    deadline = time.monotonic() + timeout
    while any(map(runs, processes)) and time.monotonic() < deadline:
        time.sleep(0.1)
    alive = [process for process in processes if runs(process)]
    return [process for process in processes if process not in alive], alive


def descendants(process: psutil.Process) -> list[psutil.Process]:
    """All processes below ``process``, zombies included; none if it is gone."""
    with suppress(psutil.NoSuchProcess):
        return process.children(recursive=True)
    return []


def runs(process: psutil.Process) -> bool:
    """Whether it is alive: neither gone, nor a zombie, nor another process with its number."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def shared_memory_of(processes: Iterable[psutil.Process]) -> set[Path]:
    """The files in ``/dev/shm`` that ``processes`` have mapped and that still have their name."""
    found: set[Path] = set()
    for process in processes:
        with suppress(OSError):
            lines = Path(f"/proc/{process.pid}/maps").read_text().splitlines()
            paths = [line.partition("/")[2] for line in lines if "/dev/shm/" in line]
            found.update(Path("/" + path) for path in paths if not path.endswith(" (deleted)"))
    return found


def signal_that_ended(pid: int) -> str | None:
    """The signal that ended a child of this process, such as ``SIGKILL``; None if there was none, or it can't be known.

    The child stays as it is: it can still be waited for.
    """
    try:
        ended = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return None
    if ended is None or ended.si_code not in (os.CLD_KILLED, os.CLD_DUMPED):
        return None
    return signal.Signals(ended.si_status).name


def _signal(process: psutil.Process, signum: int) -> None:
    with suppress(psutil.NoSuchProcess):
        process.send_signal(signum)
