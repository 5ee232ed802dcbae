"""Whether the machine has process ids left: a program that gets no thread for want of them isn't wrong.

What a program lacks for its own sake is told apart by its own limit: it may have as many threads as
:class:`recipe.flowrl.sandbox.outcome.Limits` says, and no processes. It is the machine's fault if there is no room for
that many beside what runs, be it the kernel's, a control group's or the user's limit that leaves none. This is looked
at before a program and after it, while it has none; a shortage between the two shows in the control group's counter of
refusals, where there is such a group, and else doesn't.
"""

import functools
import os
import resource
from contextlib import suppress
from pathlib import Path

from recipe.flowrl.common.control_groups import PROC, own_groups
from recipe.flowrl.sandbox.outcome import Limits, SandboxError

BESIDES = 16
"""Processes of a sandbox beside the program's threads, with some to spare."""


def check_room(limits: Limits) -> int:
    """Check that there are process ids for a program that takes all that its limits allow.

    Returns:
        How often a control group has refused one so far.

    Raises:
        SandboxError: there are too few.
    """
    needed = limits.threads + BESIDES
    for what, left in _left(needed).items():
        if left < needed:
            raise SandboxError(f"out of process ids: {what} leaves {max(left, 0)}, a program may take {needed}")
    return _refusals()


def check_none_refused(limits: Limits, refusals: int) -> None:
    """Check that there still are, and that no control group has refused one since it had refused ``refusals``.

    Raises:
        SandboxError: it has.
    """
    if check_room(limits) > refusals:
        raise SandboxError("out of process ids: the control group's limit (pids.max) was met meanwhile")


def _left(needed: int) -> dict[str, int]:
    """What bounds the number of processes -> how many more it allows."""
    running = int((PROC / "loadavg").read_text().split()[3].partition("/")[2])  # threads of the whole machine
    left = {f"kernel.{name}": _number(PROC / "sys/kernel" / name) - running for name in ("threads-max", "pid_max")}
    for group in _groups():
        with suppress(OSError, ValueError):  # "max"
            left[f"{group}/pids.max"] = int((group / "pids.max").read_text()) - _number(group / "pids.current")
    most = resource.getrlimit(resource.RLIMIT_NPROC)[0]
    if os.geteuid() and most != resource.RLIM_INFINITY:  # root's isn't looked at
        left["the user's limit (ulimit -u)"] = most - (running if most - running >= needed else _threads_of_user())
    return left


@functools.cache
def _groups() -> list[Path]:
    return [*own_groups(), *own_groups("pids")]


def _refusals() -> int:
    total = 0
    for group in _groups():
        # Since Linux 6.11 the other counts what the groups below were refused by limits of their own, too.
        local = group / "pids.events.local"
        with suppress(OSError, IndexError, ValueError):
            total += int((local if local.exists() else group / "pids.events").read_text().split()[1])
    return total


def _threads_of_user() -> int:
    threads = 0
    for process in PROC.iterdir():
        with suppress(OSError):
            if process.name.isdigit() and process.stat().st_uid == os.geteuid():
                threads += len(os.listdir(process / "task"))
    return threads


def _number(file: Path) -> int:
    return int(file.read_text())
