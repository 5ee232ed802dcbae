"""The default sandbox: bubblewrap's namespaces, a seccomp filter and resource limits. Needs no privileges.

A program sees the system's files read-only, an empty /tmp in memory, no network, no other process, an environment of
its own. It can't start processes (:mod:`recipe.flowrl.sandbox.seccomp`), and all it can leave is what it printed.

From the outside in, each the parent of the next: ``unshare`` is waited for here and waits for the rest; bubblewrap is
the first process of a namespace, with which the kernel ends and reaps all in it; bubblewrap's init, of the namespace
that the program sees; the program. Below a trainer that runs as root all from bubblewrap on has an unprivileged id.
"""

import functools
import importlib.util
import os
import shutil
import signal
import stat
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from recipe.flowrl.sandbox import cgroups, seccomp
from recipe.flowrl.sandbox.outcome import Limits, Outcome, SandboxError, Status
from recipe.flowrl.sandbox.process import Ended, kill_group, limited, only_child, run_bounded
from recipe.flowrl.sandbox.room import BESIDES, check_none_refused, check_room

PACKAGES = ("numpy", "sortedcontainers")
"""Of this environment, seen by the programs beside the standard library, if they are installed."""

_PROGRAM, _PACKAGES_AT = "/program.py", "/packages"
_ENVIRONMENT = {
    "PATH": "/usr/bin:/bin",
    "HOME": "/tmp",
    "LANG": "C.UTF-8",
    "PYTHONDONTWRITEBYTECODE": "1",
    "PYTHONINTMAXSTRDIGITS": "0",
    "PYTHONPATH": _PACKAGES_AT,
    "OPENBLAS_NUM_THREADS": "1",
}
_DEVICES = ("null", "zero", "full", "random", "urandom")
_OUTSIDE_ID = 65533
"""Of programs below root: in the range that no distribution assigns (65534 is NFS's and the kernel's "nobody")."""
_FILES = 4096
_COUNTS_THREADS = (5, 14)
"""Version of the kernel from which it bounds the processes of a user namespace by themselves."""

_ABOUT = 0.9
_RETRY_AFTER_S = (0.5, 2.0, 5.0)
_COMPLAINT_BYTES = 300

_STAGE = f"""
echo 1000 2>/dev/null >/proc/self/oom_score_adj
if [ -n "$1" ]; then {cgroups.JOIN}; fi
shift
mount -t tmpfs -o "size=$1,nr_inodes=$2,mode=755,nosuid,nodev" sandbox /sys || exit
mkdir -m 1777 $3 || exit
shift 3
number=0
while [ "$1" != -- ]; do
    mount --rbind -- "$1" "/sys/$number" || exit
    number=$((number + 1))
    shift
done
shift
exec "$@"
"""
"""Run in a mount namespace of its own, with the right to mount: bubblewrap's tmpfs has no bound on the number of files.
It covers /sys, which nothing here needs. Arguments: the door of the program's control group, or nothing; bytes; files;
directories to be made; those that only root can reach, to be bound where others can; ``--``; the command."""


class BubblewrapRunner:
    """Runs Python programs below bubblewrap."""

    def run(self, program: str, stdin: str, limits: Limits) -> Outcome:
        """See :class:`recipe.flowrl.sandbox.outcome.Runner`. What fails for the machine's sake is tried 4 times."""
        for pause in _RETRY_AFTER_S:
            with suppress(SandboxError):
                return _run_once(program, stdin, limits)
            time.sleep(pause)
        return _run_once(program, stdin, limits)


def _run_once(program: str, stdin: str, limits: Limits) -> Outcome:
    refusals = check_room(limits)
    try:
        with ExitStack() as files:
            group = files.enter_context(cgroups.group(limits))
            code = files.enter_context(_memory_file(program.encode(errors="replace")))
            rules = files.enter_context(_memory_file(seccomp.compiled()))
            stderr = files.enter_context(_memory_file(b""))
            begun, mark = files.enter_context(_pipe())
            told, tell = files.enter_context(_pipe())
            inherited = (code, rules, mark, tell)
            command = _command(*inherited, limits, group.door if group else "")
            ended = run_bounded(
                command, stdin.encode(errors="replace"), limits, inherited, stderr, _program_below, _kill
            )
            complaint = os.pread(stderr, _COMPLAINT_BYTES, 0).decode(errors="replace").strip()
            has_begun, has_ended = bool(_read(begun)), b"exit-code" in _read(told)
            took_all_its_memory = group is not None and group.out_of_memory()
    except OSError as error:
        raise SandboxError(f"bubblewrap can't be started: {error}") from error
    if not has_begun:
        reason = complaint or f"no program was started in {limits.wall_s:g} s, or at all (status {ended.returncode})"
        raise SandboxError(f"bubblewrap fails: {reason}")
    check_none_refused(limits, refusals)
    if took_all_its_memory:
        return Outcome(ended.exceeded or Status.FAILED, ended.stdout)
    if ended.exceeded is None and (not has_ended or _killed_by_the_machine(ended, limits)):
        raise SandboxError("the sandbox was killed, as when the machine runs out of memory")
    return Outcome(ended.status, ended.stdout)


def _killed_by_the_machine(ended: Ended, limits: Limits) -> bool:
    """Whether the program was killed, which it can't do itself, by neither this process nor the limit of CPU time."""
    out_of_time = ended.cpu_s > _ABOUT * limits.cpu_s  # it may ignore the first signal, but not the one a second later
    return ended.returncode == seccomp.KILLED_STATUS and not out_of_time


@functools.cache
def problem() -> str | None:
    """Why the sandbox can't work on this machine, in a few words; None if it does. Runs a program to see."""
    if not seccomp.supported():
        return f"there is no system call filter for {os.uname().machine}"
    if missing := [name for name in ("bwrap", "prlimit", "unshare", "setpriv", "mount") if shutil.which(name) is None]:
        return f"{missing[0]} isn't installed (apt-get install bubblewrap util-linux mount)"
    try:
        outcome = _run_once("print(input())", "works", Limits())
    except SandboxError as error:
        return str(error)
    return None if outcome.stdout.strip() == "works" else f"bwrap fails: {outcome.status}"


def gaps() -> list[str]:
    """What this machine lacks for limits that the sandbox keeps elsewhere, and what takes its place."""
    found = []
    if lacking := cgroups.missing():
        found.append(
            f"no control group for each program ({lacking}): its memory is bounded as address space, that of all "
            "together only by how many run at once; systemd-run --user --scope starts a run that has them"
        )
    if not _counts_processes():
        version = ".".join(map(str, _COUNTS_THREADS))
        found.append(
            f"a kernel before {version} doesn't bound a program's threads: they are counted, 20 times a second"
        )
    if os.geteuid() == 0 and not _below_root():
        found.append(
            "this user namespace has no second id: programs have the trainer's on the host, which isn't root's"
        )
    return found


def _command(code: int, rules: int, mark: int, tell: int, limits: Limits, door: str) -> list[str]:
    namespaces = ["--mount", "--pid", "--fork", "--kill-child"]
    unprivileged: list[str] = []
    if _below_root():
        reuid = [f"--reuid={_OUTSIDE_ID}", f"--regid={_OUTSIDE_ID}", "--clear-groups", "--inh-caps=-all"]
        unprivileged = ["setpriv", *reuid, "--"]
    else:
        namespaces += ["--user", "--map-root-user"]
    bound = _only_for_root()
    made = " ".join(["/sys/tmp", *(f"/sys/{number}" for number in range(len(bound)))])
    stage = ["sh", "-c", _STAGE, "sandbox", door, str(4 * limits.file_bytes), str(_FILES), made, *bound, "--"]
    return [
        *("setpriv", "--pdeathsig=KILL", "--", "unshare", *namespaces, "--", *stage, *unprivileged),
        *_wrapped(code, rules, mark, tell),
        *("--", *limited(limits), *_processes(limits), "--", _interpreter(), _PROGRAM),
    ]


def _wrapped(code: int, rules: int, mark: int, tell: int) -> list[str]:
    variables = {**_ENVIRONMENT, "SANDBOX_STARTED": str(mark)}
    environment = [word for name, value in variables.items() for word in ("--setenv", name, value)]
    isolation = ["--unshare-all", "--unshare-user", "--die-with-parent", "--new-session", "--cap-drop", "ALL"]
    identity = ["--uid", "65534", "--gid", "65534", "--hostname", "sandbox"]
    files = [*_system(), "--proc", "/proc", *_devices(), "--bind", "/sys/tmp", "/tmp"]
    # /proc too: with the right id, the kernel would take writes to /proc/sys from here.
    read_only = [word for path in ("/proc", "/") for word in ("--remount-ro", path)]
    program = ["--ro-bind-data", str(code), _PROGRAM]
    rest = ["--chdir", "/tmp", "--seccomp", str(rules), "--json-status-fd", str(tell)]
    return ["bwrap", *isolation, *identity, "--clearenv", *environment, *files, *program, *read_only, *rest]


def _devices() -> list[str]:
    """The host's nodes (an unprivileged user can't make any), which none can change: there is no call to do it with."""
    options = ["--dir", "/dev"]
    for path in (f"/dev/{name}" for name in _DEVICES):
        options += ["--dev-bind", path, path]
    for name, target in (("fd", ""), ("stdin", "/0"), ("stdout", "/1"), ("stderr", "/2")):
        options += ["--symlink", f"/proc/self/fd{target}", f"/dev/{name}"]
    return options


@functools.cache
def _system() -> Sequence[str]:
    """Options that show the system's programs and libraries, the interpreter's, and :data:`PACKAGES`."""
    options = ["--ro-bind", "/usr", "/usr", "--ro-bind-try", "/etc/ld.so.cache", "/etc/ld.so.cache"]
    for name in ("/bin", "/lib", "/lib64", "/lib32"):
        path = Path(name)
        if path.is_symlink():
            options += ["--symlink", os.readlink(path), name]
        elif path.is_dir():
            options += ["--ro-bind", name, name]
    hidden = {source: f"/sys/{number}" for number, source in enumerate(_only_for_root())}
    for source, destination in _own_files().items():
        options += ["--ro-bind", hidden.get(source, source), destination]
    return options


@functools.cache
def _own_files() -> dict[str, str]:
    """Directories and files of this environment that programs see, and where; beside the system's."""
    found = {str(Path(__file__).with_name("sitecustomize.py")): f"{_PACKAGES_AT}/sitecustomize.py"}
    if not Path(sys.base_prefix).is_relative_to("/usr"):
        found[sys.base_prefix] = sys.base_prefix
    for package in PACKAGES:
        spec = importlib.util.find_spec(package)
        if spec is not None and spec.origin is not None:
            directory = Path(spec.origin).parent
            for path in (directory, directory.with_name(f"{package}.libs")):  # the wheel's shared libraries
                if path.is_dir():
                    found[str(path)] = f"{_PACKAGES_AT}/{path.name}"
    return found


@functools.cache
def _only_for_root() -> Sequence[str]:
    """Those of :func:`_own_files` that an unprivileged user can't reach, below root; as all that is in /root."""
    return [path for path in _own_files() if not _reachable(Path(path))] if _below_root() else []


def _reachable(path: Path) -> bool:
    return all(parent.stat().st_mode & stat.S_IXOTH for parent in path.resolve().parents)


@functools.cache
def _below_root() -> bool:
    """Whether this process is root, and there are other ids to be had."""
    ranges = [line.split() for line in Path("/proc/self/uid_map").read_text().splitlines()]
    return os.geteuid() == 0 and any(int(first) <= _OUTSIDE_ID < int(first) + int(size) for first, _, size in ranges)


def _processes(limits: Limits) -> list[str]:
    """A limit on processes counts those of the namespace only, from a version of the kernel on."""
    return [f"--nproc={limits.threads + BESIDES}"] if _counts_processes() else []


def _counts_processes() -> bool:
    version = tuple(int(part) for part in os.uname().release.split("-")[0].split(".")[:2])
    return version >= _COUNTS_THREADS


def _interpreter() -> str:
    return str(Path(sys.base_prefix, "bin", f"python{sys.version_info.major}.{sys.version_info.minor}"))


def _program_below(pid: int) -> int | None:
    """From ``unshare`` over bubblewrap and its init."""
    below: int | None = pid
    for _ in range(3):
        below = only_child(below) if below is not None else None
    return below


def _kill(pid: int) -> None:
    """End the namespace below ``unshare``, which then reaps it and ends; ``unshare`` itself while it has no child."""
    child = only_child(pid)
    if child is None:
        kill_group(pid)
    else:
        with suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)


def _read(pipe: int) -> bytes:
    try:
        return os.read(pipe, 4096)
    except BlockingIOError:
        return b""


@contextmanager
def _pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        yield ends
    finally:
        for end in ends:
            os.close(end)


@contextmanager
def _memory_file(content: bytes) -> Iterator[int]:
    descriptor = os.memfd_create("sandbox")
    try:
        os.fchmod(descriptor, 0o666)
        with os.fdopen(os.dup(descriptor), "wb") as file:
            file.write(content)
        os.lseek(descriptor, 0, os.SEEK_SET)
        yield descriptor
    finally:
        os.close(descriptor)
