"""Where the Python threads of other processes are, by py-spy, which needs nothing of them."""

import shutil
import subprocess
import sys
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

LIMIT_S = 10.0
"""For one process."""


def python_stacks(pids: Collection[int]) -> dict[int, str]:
    """Each process's threads with their frames, or a line that says why they can't be had.

    That is so where py-spy isn't installed, or where the kernel lets a process look into its own children only
    (``kernel.yama.ptrace_scope`` 1 or more, and not root).
    """
    with ThreadPoolExecutor(4) as pool:
        return dict(zip(pids, pool.map(_dump, pids), strict=True))


def innermost_frame(stacks: str) -> str:
    """The main thread's innermost frame; the first line where there are no frames."""
    lines = stacks.splitlines() or [""]
    threads = [i for i, line in enumerate(lines[:-1]) if line.startswith("Thread ")]
    threads.sort(key=lambda i: "MainThread" not in lines[i])  # a thread has its name only where threads are in use
    return lines[threads[0] + 1].strip() if threads else lines[0]


def _dump(pid: int) -> str:
    beside = Path(sys.executable).with_name("py-spy")
    program = str(beside) if beside.exists() else shutil.which("py-spy")
    if program is None:
        return "no stacks: py-spy isn't installed"
    for mode in (["--nonblocking"], []):  # a process that doesn't run can't be paused, one that does is better paused
        command = [program, "dump", *mode, "--pid", str(pid)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, check=False)
        except subprocess.TimeoutExpired:
            return f"no stacks: py-spy took longer than {LIMIT_S:.0f} s"
        if done.returncode == 0:
            return done.stdout
    reason = done.stderr.partition("Stack backtrace")[0]  # py-spy's own
    return f"no stacks: {' '.join(reason.split())}"
