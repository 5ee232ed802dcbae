"""End every process that a run has started, also those that lost their parent."""

import ctypes

import psutil

_PR_SET_CHILD_SUBREAPER = 36


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


def end_descendants(grace_s: float = 3.0) -> int:
    """Terminate all descendants, then kill those that are left after ``grace_s`` seconds.

    Returns:
        How many there were.
    """
    ended = set()
    while processes := [p for p in psutil.Process().children(recursive=True) if _runs(p)]:
        for process in processes:
            ended.add(process.pid)
            _signal(process, "terminate")
        _, alive = psutil.wait_procs(processes, timeout=grace_s)
        for process in alive:
            _signal(process, "kill")
        psutil.wait_procs(alive, timeout=grace_s)
    return len(ended)


def _runs(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _signal(process: psutil.Process, how: str) -> None:
    try:
        getattr(process, how)()
    except psutil.NoSuchProcess:
        pass
