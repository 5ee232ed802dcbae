"""What the sandbox asks of the machine: process ids for each program, and a control group where one is granted."""

import contextlib
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from recipe.flowrl.common import control_groups
from recipe.flowrl.common.project import PROJECT
from recipe.flowrl.sandbox import bubblewrap, cgroups, room
from recipe.flowrl.sandbox.outcome import Limits, Outcome, SandboxError, Status

LIMITS = Limits(wall_s=20.0, cpu_s=10, memory_bytes=512 * 2**20)
needs_bubblewrap = pytest.mark.skipif(bubblewrap.problem() is not None, reason=f"no sandbox: {bubblewrap.problem()}")
MOUNTS = """\
30 1 0:26 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw,nsdelegate
31 1 0:27 / /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids
32 1 0:28 {root} {mounted} rw,nosuid shared:4 - cgroup cgroup rw,cpu,cpuacct
"""


# ---- where the groups are ------------------------------------------------------------------------------------------


def test_the_groups_of_a_container_are_those_that_it_sees(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mounted = tmp_path / "mounted"
    (mounted / "b/c").mkdir(parents=True)
    (tmp_path / "self").mkdir()
    (tmp_path / "self/cgroup").write_text("4:cpu,cpuacct:/docker/a/b/c\n0::/x\n")
    monkeypatch.setattr(control_groups, "PROC", tmp_path)
    mountinfo = tmp_path / "self/mountinfo"
    mountinfo.write_text(MOUNTS.format(root="/docker/a", mounted=mounted))
    assert control_groups.own_groups("cpuacct") == [mounted / "b/c", mounted / "b", mounted]
    mountinfo.write_text(MOUNTS.format(root="/docker/other", mounted=mounted))
    assert control_groups.own_groups("cpu") == [mounted]
    assert control_groups.own_groups("memory") == [] and control_groups.own_groups("pids") == []
    mountinfo.unlink()
    assert control_groups.own_groups("cpu") == []


# ---- process ids ---------------------------------------------------------------------------------------------------


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with 1,000 threads and limits far off, whose files are in this directory."""
    for name in ("threads-max", "pid_max"):
        (tmp_path / "sys/kernel").mkdir(parents=True, exist_ok=True)
        (tmp_path / "sys/kernel" / name).write_text("30000\n")
    (tmp_path / "loadavg").write_text("0.1 0.1 0.1 3/1000 4711\n")
    group = tmp_path / "group"
    group.mkdir()
    (group / "pids.max").write_text("max\n")
    (group / "pids.current").write_text("900\n")
    (group / "pids.events").write_text("max 3\n")
    monkeypatch.setattr(room, "PROC", tmp_path)
    monkeypatch.setattr(room, "_groups", lambda: [group, tmp_path / "gone"])
    monkeypatch.setattr(room.resource, "getrlimit", lambda kind: (-1, -1))
    return tmp_path


def test_there_is_room(machine: Path) -> None:
    assert room.check_room(LIMITS) == 3
    room.check_none_refused(LIMITS, 3)


@pytest.mark.parametrize(
    ("file", "content", "left"),
    [("sys/kernel/pid_max", "1040", 40), ("sys/kernel/threads-max", "900", 0), ("group/pids.max", "979", 79)],
)
def test_a_machine_without_room_says_what_leaves_none(machine: Path, file: str, content: str, left: int) -> None:
    (machine / file).write_text(content)
    with pytest.raises(SandboxError, match=rf"{Path(file).name} leaves {left}, a program may take 80"):
        room.check_room(LIMITS)


def test_what_was_refused_meanwhile_is_the_machines_fault(machine: Path) -> None:
    with pytest.raises(SandboxError, match=r"pids\.max\) was met meanwhile"):
        room.check_none_refused(LIMITS, 2)
    (machine / "group/pids.events.local").write_text("max 0\n")
    room.check_none_refused(LIMITS, 0)  # what a program's own group refused it is the program's fault


def test_a_users_own_limit(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room.os, "geteuid", lambda: 4711)
    monkeypatch.setattr(room.resource, "getrlimit", lambda kind: (1050, 1050))
    room.check_room(LIMITS)  # of the machine's 1,000 threads none is this user's
    (machine / "17/task").mkdir(parents=True)
    monkeypatch.setattr(room.os, "geteuid", os.getuid)
    for thread in range(980):
        (machine / "17/task" / str(thread)).mkdir()
    if os.getuid():
        with pytest.raises(SandboxError, match="ulimit -u"):
            room.check_room(LIMITS)


def _pids_group() -> Path | None:
    """Where a control group with a limit on processes can be made, if this machine has such a place."""
    for group in control_groups.own_groups("pids")[:1]:
        if os.geteuid() == 0 and os.access(group / "cgroup.procs", os.W_OK):
            return group
    return None


@needs_bubblewrap
@pytest.mark.skipif(_pids_group() is None, reason="no control group can be made here")
def test_a_program_that_gets_no_thread_is_not_wrong() -> None:
    """In a real group that hasn't enough process ids for its threads."""
    group = _pids_group() / f"test-{os.getpid()}"
    group.mkdir()
    code = (
        "from recipe.flowrl.sandbox import bubblewrap\nfrom recipe.flowrl.sandbox.outcome import *\n"
        "bubblewrap._RETRY_AFTER_S = (0.01,)\n"
        "program = 'import threading, time\\n' + 'threading.Thread(target=time.sleep, args=(0.1,)).start()\\n' * 20\n"
        "try: print(bubblewrap.BubblewrapRunner().run(program, '', Limits()).status)\n"
        "except SandboxError as error: print(error)"
    )
    script = f'echo 0 >"{group}/cgroup.procs" && exec "$@"'
    command = ["sh", "-c", script, "sh", sys.executable, "-c", code]

    def told(limit: str) -> str:
        (group / "pids.max").write_text(limit)
        done = subprocess.run(
            command, env={**os.environ, "PYTHONPATH": str(PROJECT)}, capture_output=True, text=True, timeout=60
        )
        return done.stdout.strip() or done.stderr

    try:
        assert told("max") == "finished"
        assert "pids.max leaves" in told("20")
    finally:
        group.rmdir()


# ---- control groups ------------------------------------------------------------------------------------------------


@pytest.fixture
def granted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Two directories that stand for control groups; the outer one hands both controllers down."""

    def make(directory: Path) -> None:
        directory.mkdir()
        for name in ("cgroup.procs", "cgroup.kill", "memory.max", "memory.oom.group", "memory.swap.max", "pids.max"):
            (directory / name).touch()
        (directory / "memory.events").write_text("low 0\noom 0\noom_kill 0\n")

    outer, own = tmp_path / "outer", tmp_path / "outer/own"
    own.mkdir(parents=True)
    (outer / "cgroup.subtree_control").write_text("cpu memory pids\n")
    (own / "cgroup.subtree_control").write_text("\n")
    monkeypatch.setattr(cgroups, "own_groups", lambda: [own, outer, tmp_path])
    monkeypatch.setattr(cgroups, "_make", make)
    monkeypatch.setattr(cgroups, "_unmake", shutil.rmtree)
    cgroups._granted.cache_clear()
    yield outer
    cgroups._granted.cache_clear()


def groups_in(outer: Path) -> list[Path]:
    return list(outer.glob(f"{cgroups._PREFIX}*"))


def test_a_program_has_a_group_with_its_limits_while_it_runs(granted: Path) -> None:
    assert cgroups.missing() is None and not groups_in(granted)
    with cgroups.group(Limits()) as group:
        (directory,) = groups_in(granted)
        assert group.door == str(directory / "cgroup.procs") and not group.out_of_memory()
        assert int((directory / "memory.max").read_text()) == 2 * 2**30 + 128 * 2**20
        assert (directory / "pids.max").read_text() == "96" and (directory / "memory.oom.group").read_text() == "1"
        assert (directory / "memory.swap.max").read_text() == "0"
        (directory / "memory.events").write_text("oom 1\noom_kill 1\n")
        assert group.out_of_memory()
    assert not groups_in(granted)


@needs_bubblewrap
def test_the_sandbox_enters_its_group(granted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entered: list[str] = []
    unmake = cgroups._unmake

    def keep(directory: Path) -> None:
        entered.append((directory / "cgroup.procs").read_text())
        unmake(directory)

    assert cgroups.missing() is None
    monkeypatch.setattr(cgroups, "_unmake", keep)
    assert bubblewrap._run_once("print(1)", "", LIMITS) == Outcome(Status.FINISHED, "1\n")
    assert entered == ["0\n"] and not groups_in(granted)


@needs_bubblewrap
def test_a_program_that_takes_its_groups_memory_is_wrong(granted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unlike one that is killed for somebody else's sake: the kernel tells which it was."""
    monkeypatch.setattr(cgroups.Group, "out_of_memory", lambda self: True)
    ended: list[Outcome] = []
    program = threading.Thread(
        target=lambda: ended.append(bubblewrap._run_once("import time\ntime.sleep(15)", "", LIMITS))
    )
    before = _sandboxed()
    program.start()
    deadline = time.monotonic() + 10
    while not (found := _sandboxed() - before) and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.5)
    for pid in found:
        os.kill(pid, 9)
    program.join()
    assert ended == [Outcome(Status.FAILED, "")]


def _sandboxed() -> set[int]:
    import psutil

    found = set()
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):  # it has ended
            if "/program.py" in process.cmdline() and "python" in process.name():
                found.add(process.pid)
    return found


@needs_bubblewrap
def test_a_group_that_cannot_be_entered_is_the_machines_fault(granted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cgroups.missing() is None
    original = cgroups.Group.__init__

    def elsewhere(self: cgroups.Group, directory: Path) -> None:
        original(self, directory)
        self.door = "/no/such/group/cgroup.procs"

    monkeypatch.setattr(cgroups.Group, "__init__", elsewhere)
    with pytest.raises(SandboxError, match=r"bubblewrap fails: .*cgroup\.procs"):
        bubblewrap._run_once("print(1)", "", LIMITS)
    assert not groups_in(granted)


@pytest.mark.parametrize(
    ("subtree", "said"), [("cpu", "hands down no control of memory and pids"), (None, "no cgroup v2 hierarchy")]
)
def test_without_a_group_programs_run_as_well(
    granted: Path, monkeypatch: pytest.MonkeyPatch, subtree: str | None, said: str
) -> None:
    if subtree is None:
        monkeypatch.setattr(cgroups, "own_groups", lambda: [])
    else:
        (granted / "cgroup.subtree_control").write_text(subtree)
    with cgroups.group(LIMITS) as group:
        assert group is None
    assert said in cgroups.missing()
    assert any(said in gap and "systemd-run" in gap for gap in bubblewrap.gaps())


def test_a_group_further_out_is_left_alone(granted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may be a job's, or all users'."""
    own = granted / "own"
    (own / "a/b").mkdir(parents=True)
    monkeypatch.setattr(cgroups, "own_groups", lambda: [own / "a/b", own / "a", own, granted])
    assert cgroups.missing() is not None


def test_a_group_that_is_not_ours_to_divide(granted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(directory: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(cgroups, "_make", refuse)
    monkeypatch.setattr(cgroups, "_GOING_S", 0.02)
    assert "isn't this user's to divide (Permission denied)" in cgroups.missing()


def test_groups_of_killed_runs_are_removed_but_not_those_in_use(granted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("left", "used"):
        cgroups._make(granted / f"{cgroups._PREFIX}{name}")
    unmake = cgroups._unmake

    def busy(directory: Path) -> None:
        if directory.name.endswith("used"):
            raise OSError(16, "Device or resource busy")
        unmake(directory)

    monkeypatch.setattr(cgroups, "_unmake", busy)
    assert cgroups.missing() is None
    assert [group.name for group in groups_in(granted)] == [f"{cgroups._PREFIX}used"]


@pytest.mark.skipif(
    not (os.geteuid() == 0 and control_groups.own_groups() and os.access(control_groups.own_groups()[0], os.W_OK)),
    reason="no control group of version 2 can be made here",
)
@needs_bubblewrap
def test_a_real_group_is_entered_and_removed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the kernel has version 2, but maybe with neither controller: their files are left out then."""
    around = control_groups.own_groups()[0]
    write, seen = cgroups._write, []
    if not (around / "cpu.stat").exists():
        pytest.skip("its kernel doesn't count a group's time")
    monkeypatch.setattr(cgroups, "_granted", lambda: (around, None))
    monkeypatch.setattr(cgroups, "_write", lambda file, value: write(file, value) if file.exists() else None)

    def look(group: cgroups.Group) -> bool:
        seen.append(Path(group.door).with_name("cpu.stat").read_text().split()[:2])
        return False

    monkeypatch.setattr(cgroups.Group, "out_of_memory", look)
    assert cgroups._problem(around) is None
    assert bubblewrap._run_once("print(1)", "", LIMITS) == Outcome(Status.FINISHED, "1\n")
    ((name, microseconds),) = seen
    assert name == "usage_usec" and int(microseconds) > 1000, "it ran there"
    assert not list(around.glob(f"{cgroups._PREFIX}*"))
