"""A control group (version 2) for each program, where the machine grants it: all memory, and all processes, together.

Limits on address space are of one process and don't count what the kernel holds for it; a group's count both. Granted
means that the group this process is in, or the one around it, can be written to and hands the controllers of memory and
of processes down, as systemd sets it up for a user's own units. Nothing is turned on for that, no process but the
program's is moved, and no group further out is used: it may be a job's, which the program isn't to leave.
"""

import functools
import os
import secrets
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from recipe.flowrl.common.control_groups import own_groups
from recipe.flowrl.sandbox.outcome import Limits
from recipe.flowrl.sandbox.room import BESIDES

JOIN = 'echo 0 >"$1" || exit'
"""A line of a shell script: what comes after it runs in the group, ``$1`` being its :attr:`Group.door`."""

_PREFIX = "flowrl-program-"
_CONTROLLERS = {"memory", "pids"}
_BESIDES_BYTES = 64 * 2**20
"""Of the sandbox's own processes, and of the kernel for all of them."""
_GOING_S = 1.0
"""A group can be removed once its last process has been reaped."""


class Group:
    """The group of one program."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.door = str(directory / "cgroup.procs")

    def out_of_memory(self) -> bool:
        """Whether the kernel ended the program, which took more memory than its group has."""
        lines = (self._directory / "memory.events").read_text().splitlines()
        return any(int(count) > 0 for name, count in map(str.split, lines) if name == "oom_kill")


@contextmanager
def group(limits: Limits) -> Iterator[Group | None]:
    """A group with these limits, which is gone afterwards with all that is in it; None where none is granted.

    Raises:
        OSError: it can't be made, although it could before.
    """
    around = _granted()[0]
    if around is None:
        yield None
        return
    directory = around / f"{_PREFIX}{secrets.token_hex(8)}"
    _make(directory)
    try:
        memory = limits.memory_bytes + 4 * limits.file_bytes + _BESIDES_BYTES
        written = {"memory.max": memory, "memory.oom.group": 1, "pids.max": limits.threads + 2 * BESIDES}
        for name, value in written.items():
            _write(directory / name, value)
        with suppress(FileNotFoundError):  # a kernel without swap
            _write(directory / "memory.swap.max", 0)
        yield Group(directory)
    finally:
        _remove(directory)


def missing() -> str | None:
    """What the machine lacks for groups of programs, in a few words; None if it grants them."""
    return _granted()[1]


@functools.cache
def _granted() -> tuple[Path | None, str | None]:
    """The group in which those of programs are made, or what is missing. A process is sent there to see."""
    own = own_groups()
    if not own:
        return None, "no cgroup v2 hierarchy can be seen"
    reason: str | None = f"{own[0]} hands down no control of {' and '.join(sorted(_CONTROLLERS))}"
    for around in own[:2]:
        with suppress(OSError):
            if not _CONTROLLERS <= set((around / "cgroup.subtree_control").read_text().split()):
                continue
            if reason := _problem(around):
                continue
            _remove_stale(around)
            return around, None
    return None, reason


def _problem(around: Path) -> str | None:
    """Why no process can be sent to a new group in ``around``."""
    directory = around / f"{_PREFIX}{secrets.token_hex(8)}"
    try:
        _make(directory)
        script = ["sh", "-c", JOIN, "sh", str(directory / "cgroup.procs")]
        done = subprocess.run(script, capture_output=True, text=True)
        return f"{around}: {done.stderr.strip()[-200:]}" if done.returncode else None
    except OSError as error:
        return f"{around} isn't this user's to divide ({error.strerror})"
    finally:
        _remove(directory)


def _make(directory: Path) -> None:
    os.mkdir(directory)


def _unmake(directory: Path) -> None:
    os.rmdir(directory)


def _write(file: Path, value: int) -> None:
    descriptor = os.open(file, os.O_WRONLY | os.O_CLOEXEC)  # never made: the kernel makes the files of a group
    try:
        os.write(descriptor, str(value).encode())
    finally:
        os.close(descriptor)


def _remove(directory: Path) -> None:
    """End what is left in the group, and remove it; one that stays is removed by a later run."""
    deadline = time.monotonic() + _GOING_S
    while time.monotonic() < deadline:
        try:
            return _unmake(directory)
        except FileNotFoundError:
            return None
        except OSError:
            with suppress(OSError):
                _write(directory / "cgroup.kill", 1)
            time.sleep(0.01)
    return None


def _remove_stale(around: Path) -> None:
    """Remove groups of runs that were killed; a program that is about to enter its own is sent again."""
    for directory in around.glob(f"{_PREFIX}*"):
        with suppress(OSError):  # in use
            _unmake(directory)
