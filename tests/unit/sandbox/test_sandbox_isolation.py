"""What the sandbox promises about the host, the kernel's memory and its own failures, tried from inside and outside."""

import os
import platform
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from recipe.flowrl.common.project import PROJECT
from recipe.flowrl.sandbox import bubblewrap, seccomp
from recipe.flowrl.sandbox.outcome import Limits, Outcome, SandboxError, Status

LIMITS = Limits(wall_s=20.0, cpu_s=10, memory_bytes=512 * 2**20, file_bytes=2**20, output_bytes=65536)
pytestmark = pytest.mark.skipif(bubblewrap.problem() is not None, reason=f"no sandbox: {bubblewrap.problem()}")


def run(program: str, stdin: str = "", limits: Limits = LIMITS) -> Outcome:
    return bubblewrap.BubblewrapRunner().run(program, stdin, limits)


def printed(program: str) -> list[str]:
    outcome = run(program)
    assert outcome.status == Status.FINISHED
    return outcome.stdout.split()


# ---- the host ------------------------------------------------------------------------------------------------------

CHANGES = {  # of what is the host's; each prints "through" if it succeeds
    "mode of a device": "os.chmod('/dev/null', 0)",
    "mode of a device, through a descriptor": "os.fchmod(os.open('/dev/null', os.O_RDWR), 0)",
    "times of a device": "os.utime('/dev/null')",
    "times of a device, through a descriptor": "os.utime(os.open('/dev/zero', os.O_RDWR))",
    "owner of a device": "os.chown('/dev/urandom', os.getuid(), os.getgid())",
    "attribute of a device": "os.setxattr('/dev/null', 'user.x', b'1')",
    "a new device": "os.mknod('/tmp/x', 0o020666, os.makedev(1, 3))",
    "a device in place of another": "os.unlink('/dev/null')",
    "mode of a system file": "os.chmod('/usr/bin/env', 0)",
    "times of a system file": "os.utime('/usr/bin/env')",
    "mode of the interpreter": "os.chmod(sys.executable, 0)",
    "a lock on a system file": "__import__('fcntl').flock(open('/usr/bin/env'), 2)",
    "a lock on a range": "__import__('fcntl').lockf(open('/tmp/x', 'w'), 2)",
    "a lease": "__import__('fcntl').fcntl(os.open('/usr/bin/env', 0), 1024, 0)",
    "a kernel setting": "open('/proc/sys/vm/drop_caches', 'w').write('3')",
    "its own score for the memory killer": "open('/proc/self/oom_score_adj', 'w').write('0')",
    "the name of the host": "__import__('socket').sethostname('x')",
    "the clock": "time.clock_settime(0, 0)",
    "another's priority": "os.setpriority(os.PRIO_PROCESS, 1, 5)",
    "its identity": "os.setuid(0)",
    "its groups": "os.setgroups([0])",
    "its root": "os.chroot('/tmp')",
    "the memory of its init": "open('/proc/1/mem', 'r+b')",
    "the limits of its init": "resource.prlimit(1, resource.RLIMIT_AS, (-1, -1))",
    "the pipe by which its init tells how it ended": "open('/proc/1/fd/6', 'wb')",
    "its score for the memory killer, through its init": "open('/proc/1/oom_score_adj', 'w').write('-1000')",
    "a namespace inside": "os.execv('/usr/bin/bwrap', ['bwrap', '--unshare-all', '--ro-bind', '/', '/', '/bin/true'])",
    "a program that root owns": "os.execv('/usr/bin/su', ['su', '-c', 'echo through'])",
    "the calls of 32 bits": "m = mmap.mmap(-1, 64, prot=7)\n"
    "m.write(bytes.fromhex('b814000000cd80c3'))\n"  # mov eax, 20 (getpid); int 0x80; ret
    "ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(m)))()",
}


@pytest.mark.parametrize("what", CHANGES)
def test_nothing_of_the_host_can_be_changed(what: str) -> None:
    paths = ["/dev/null", "/dev/zero", "/dev/urandom", "/usr/bin/env"]
    before = [(s.st_mode, s.st_uid, s.st_mtime_ns, s.st_ctime_ns) for s in map(os.stat, paths)]
    outcome = run(f"import ctypes, mmap, os, resource, sys, time\n{CHANGES[what]}\nprint('through')")
    assert outcome == Outcome(Status.FAILED, "")
    assert before == [(s.st_mode, s.st_uid, s.st_mtime_ns, s.st_ctime_ns) for s in map(os.stat, paths)]


def test_a_program_has_an_unprivileged_id_on_the_host_and_no_capability() -> None:
    program = "print(open('/proc/self/uid_map').read(), open('/proc/self/gid_map').read())"
    inside, outside, count, *group = map(int, printed(program))
    assert (inside, count) == (65534, 1) and group[::2] == [65534, 1]
    expected = bubblewrap._OUTSIDE_ID if os.geteuid() == 0 else os.geteuid()
    assert outside in (expected, 0) and (outside != 0 or os.geteuid() != 0), "0: this user, in unshare's namespace"
    lines = printed("print(*(line for line in open('/proc/self/status') if line.startswith(('Cap', 'NoNew'))))")
    assert lines[1:10:2] == ["0" * 16] * 5 and lines[-2:] == ["NoNewPrivs:", "1"]


def test_every_mount_but_its_own_is_read_only() -> None:
    lines = printed("print(*(':'.join(line.split()[4:6]) for line in open('/proc/self/mountinfo')))")
    mounts = dict(line.split(":", 1) for line in lines)
    writable = {path for path, options in mounts.items() if options.split(",")[0] == "rw"}
    assert writable - {f"/dev/{name}" for name in bubblewrap._DEVICES} <= {"/tmp", "/proc"}
    assert all("nosuid" in options for options in mounts.values())


def test_it_has_three_descriptors_and_its_own_can_be_opened_by_name() -> None:
    assert printed("import os\nprint(len(os.listdir('/proc/self/fd')) - 1)") == ["3"]
    program = (
        "x = open('/dev/stdin').read()\nfor name in ('stderr', 'null', 'stdout'): open('/dev/' + name, 'w').write(x)"
    )
    assert run(program, "x") == Outcome(Status.FINISHED, "x")


# ---- the kernel ----------------------------------------------------------------------------------------------------

TAKERS = {  # of memory that no limit on address space counts; each prints "through" if it gets more than its share
    "files": "for i in range(10_000): open(f'/tmp/{i}', 'w').close()",
    "directories": "for i in range(10_000): os.mkdir(f'/tmp/{i}')",
    "links": "open('/tmp/x', 'w')\nfor i in range(10_000): os.link('/tmp/x', f'/tmp/{i}')",
    "long symbolic links": "for i in range(10_000): os.symlink('x' * 4000, f'/tmp/{i}')",
    "attributes": "open('/tmp/x', 'w')\nos.setxattr('/tmp/x', 'user.x', b'x')",
    "holes filled": "for i in range(9): os.posix_fallocate(os.open(f'/tmp/{i}', os.O_RDWR | os.O_CREAT), 0, 2**20)",
    "pipes": "for i in range(1000): os.pipe()",
    "large pipes": "__import__('fcntl').fcntl(os.pipe()[0], 1031, 2**20)",
    "sockets": "__import__('socket').socket()",
    "netlink": "__import__('socket').socket(16, 3)",
    "packets": "__import__('socket').socket(17, 3)",
    "pairs of another family": "c.socketpair(16, 2, 0, (ctypes.c_int * 2)()) == 0 or sys.exit(1)",
    "descriptors in flight": "a, b = __import__('socket').socketpair()\n__import__('socket').send_fds(a, [b'x'], [0])",
    "memory files": "os.memfd_create('x')",
    "secret memory": "c.syscall(447, 0) >= 0 or sys.exit(1)",
    "locked memory": "c.mlockall(3) == 0 or sys.exit(1)",
    "shared memory": "c.shmget(0, 4096, 0o1600) >= 0 or sys.exit(1)",
    "semaphores": "c.semget(0, 1, 0o1600) >= 0 or sys.exit(1)",
    "messages": "c.msgget(0, 0o1600) >= 0 or sys.exit(1)",
    "message queues": "c.syscall(240, b'x', 66, 0o600, None) >= 0 or sys.exit(1)",
    "keys": "c.syscall(248, b'user', b'x', b'x', 1, -3) >= 0 or sys.exit(1)",
    "watches": "c.inotify_init1(0) >= 0 or sys.exit(1)",
    "timers": "c.timer_create(0, None, ctypes.byref(ctypes.c_long())) == 0 or sys.exit(1)",
    "rings": "c.syscall(425, 8, (ctypes.c_char * 120)()) >= 0 or sys.exit(1)",
    "asynchronous reads": "c.syscall(206, 8, ctypes.byref(ctypes.c_long())) >= 0 or sys.exit(1)",
    "filters": "c.prctl(22, 2, 0, 0, 0) == 0 or sys.exit(1)",
    "threads": "__import__('threading').stack_size(65536)\n"
    "for i in range(400): __import__('threading').Thread(target=time.sleep, args=(9,), daemon=True).start()",
}


@pytest.mark.parametrize("what", TAKERS)
def test_memory_of_the_kernel_is_bounded(what: str) -> None:
    start = "import ctypes, os, sys, time\nc = ctypes.CDLL(None, use_errno=True)\n"
    outcome = run(f"{start}{TAKERS[what]}\nprint('through')")
    assert outcome.status in (Status.FAILED, Status.TOO_MANY_THREADS) and "through" not in outcome.stdout


def test_a_system_call_that_is_not_named_is_refused() -> None:
    column = seccomp._ARCHITECTURES[platform.machine()][0]
    named = sorted(int(numbers[column]) for numbers in seccomp._ALLOWED.values() if numbers[column] != "-")
    named += [335, 336]  # the kernel's own way back from a probe, which no filter sees; it is SIGILL to all others
    program = (
        "import ctypes\nc = ctypes.CDLL(None, use_errno=True)\n"
        f"for number in sorted(set(range(600)) - set({named})):\n"
        "  ctypes.set_errno(0)\n  result = c.syscall(number, 0, 0, 0, 0, 0, 0)\n"
        "  if result != -1 or ctypes.get_errno() != 38: print(number)"
    )
    assert printed(program) == []


@pytest.mark.parametrize(
    ("column", "header"),
    [(0, "/usr/include/x86_64-linux-gnu/asm/unistd_64.h"), (1, "/usr/include/asm-generic/unistd.h")],
)
def test_system_calls_have_the_kernels_numbers(column: int, header: str) -> None:
    if not Path(header).exists():
        pytest.skip(f"{header} isn't installed")
    kernels = dict(re.findall(r"#define __NR(?:3264)?_(\w+)\s+(\d+)", Path(header).read_text()))
    kernels.setdefault("newfstatat", "79")  # the generic header calls it fstatat
    ours = {name: numbers[column] for name, numbers in seccomp._ALLOWED.items() if numbers[column] != "-"}
    assert ours == {name: kernels[name] for name in ours}


def test_what_solutions_use_works() -> None:
    program = """
import asyncio, concurrent.futures, decimal, fractions, mmap, random, select, signal, sqlite3, sys, tempfile
import threading, time, numpy, sortedcontainers, resource, io, os
resource.setrlimit(resource.RLIMIT_STACK, (resource.getrlimit(resource.RLIMIT_STACK)[0], -1))
async def two(): await asyncio.sleep(0.01); return 2
with concurrent.futures.ThreadPoolExecutor(4) as pool: four = sum(pool.map(int, "1111"))
threads = [threading.Thread(target=time.sleep, args=(0.2,)) for _ in range(50)]
for thread in threads: thread.start()
for thread in threads: thread.join()
with tempfile.TemporaryDirectory() as directory: open(f"{directory}/x", "w").write("x"); os.listdir(directory)
signal.signal(signal.SIGALRM, lambda *_: None); signal.alarm(1)
print(asyncio.run(two()), four, len(mmap.mmap(-1, 4096)), *sqlite3.connect(":memory:").execute("select 5").fetchone())
print(numpy.linalg.inv(numpy.eye(3)).sum(), sortedcontainers.SortedList([2, 1])[0], len(str(10**5000)), file=sys.stdout)
print("to nobody" * 1000, file=sys.stderr)
"""
    limits = Limits()
    assert run(program, "", limits) == Outcome(Status.FINISHED, "2 4 4096 5\n3.0 1 5001\n")


# ---- failures ------------------------------------------------------------------------------------------------------

PRETENDERS = {  # that want to look as if the machine had ended them
    "kill itself": "os.kill(os.getpid(), 9)",
    "kill its thread": "signal.pthread_kill(threading.get_ident(), 9)",
    "kill its parent": "os.kill(1, 9)\nsys.exit(1)",
    "exit as if killed": "os._exit(137)",
    "exit as if killed, by another number": "os._exit(256 + 137)",
    "end its thread as if killed": "ctypes.CDLL(None).syscall({exit}, 137)",
    "take back that it began": "os.ftruncate(2, 0)\nos.closerange(3, 60)\nsys.exit(1)",
    "strict mode": "ctypes.CDLL(None).prctl(22, 1, 0, 0, 0)\nopen('/tmp/x')\nsys.exit(1)",
    "be killed for CPU time": "signal.signal(signal.SIGXCPU, signal.SIG_IGN)\nwhile True: pass",
}


@pytest.mark.parametrize("how", PRETENDERS)
def test_a_program_cannot_blame_the_machine(how: str) -> None:
    harm = PRETENDERS[how].replace("{exit}", "60" if platform.machine() == "x86_64" else "93")
    limits = Limits(wall_s=20.0, cpu_s=1, memory_bytes=512 * 2**20)
    for _ in range(3):
        outcome = bubblewrap._run_once(f"import ctypes, os, signal, sys, threading\n{harm}", "", limits)
        assert outcome.status in (Status.FAILED, Status.TIMED_OUT)


def test_a_broken_bubblewrap_is_no_wrong_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(bubblewrap.time, "sleep", pauses.append)
    for broken in ("false", "true", "/no/such/file"):
        with monkeypatch.context() as patch:
            patch.setattr(bubblewrap, "_wrapped", lambda *arguments, broken=broken: [broken])
            with pytest.raises(SandboxError, match="bubblewrap fails"):
                run("print(1)")
    assert pauses == [*bubblewrap._RETRY_AFTER_S] * 3
    assert run("print(1)").stdout == "1\n"


def test_a_failure_that_passes_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bubblewrap, "_RETRY_AFTER_S", (0.01, 0.01))
    whole, calls = bubblewrap._wrapped, []

    def at_third(*arguments: int) -> list[str]:
        calls.append(1)
        return whole(*arguments) if len(calls) == 3 else ["false"]

    monkeypatch.setattr(bubblewrap, "_wrapped", at_third)
    assert run("print(1)").stdout == "1\n" and len(calls) == 3


@pytest.mark.parametrize("level", [0, 1, 2, 3], ids=["unshare", "bubblewrap", "its init", "the program"])
def test_a_sandbox_that_is_killed_is_no_wrong_answer(level: int) -> None:
    def kill() -> None:
        me, deadline = psutil.Process(), time.monotonic() + 10
        while time.monotonic() < deadline:
            chain = [p for p in me.children(recursive=True) if p.pid not in before]
            if len(chain) == 4 and "python" in chain[3].name():
                time.sleep(0.5)
                chain[level].kill()
                return
            time.sleep(0.02)

    before = {process.pid for process in psutil.Process().children(recursive=True)}
    killer = threading.Thread(target=kill)
    killer.start()
    with pytest.raises(SandboxError, match="killed"):
        bubblewrap._run_once("import time\ntime.sleep(15)", "", LIMITS)
    killer.join()


def _in_a_process(code: str, *limits: str) -> str:
    start = "from recipe.flowrl.sandbox import bubblewrap\nfrom recipe.flowrl.sandbox.outcome import *\n"
    start += "bubblewrap._RETRY_AFTER_S = (0.01,)\n"
    command = ["prlimit", *limits, "--", sys.executable, "-c", start + code]
    environment = {**os.environ, "PYTHONPATH": str(PROJECT)}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=True).stdout


@pytest.mark.parametrize(
    "limit", ["--nproc=1:1", "--fsize=0:0", "--nofile=7:7", "--as=700000000:700000000"], ids=lambda limit: limit[2:]
)
def test_a_machine_that_lacks_something_gives_no_wrong_answer(limit: str) -> None:
    """Process ids, disk, descriptors, memory: where a right program doesn't pass, it isn't found wrong."""
    code = (
        "try: print(bubblewrap.BubblewrapRunner().run('print(1)', '', Limits()))\n"
        "except SandboxError as error: print('SandboxError')"
    )
    assert _in_a_process(code, limit).strip() in ("SandboxError", repr(Outcome(Status.FINISHED, "1\n")))


# ---- what is left --------------------------------------------------------------------------------------------------


def _gone(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 10
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.1)
    return condition()


def test_programs_end_with_the_trainer(tmp_path: Path) -> None:
    code = (
        "from recipe.flowrl.sandbox import bubblewrap\nfrom recipe.flowrl.sandbox.outcome import Limits\n"
        "bubblewrap.BubblewrapRunner().run('import time; time.sleep(60)', '', Limits(wall_s=60.0))"
    )
    trainer = subprocess.Popen([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(PROJECT)})
    assert _gone(lambda: len(psutil.Process(trainer.pid).children(recursive=True)) == 4)
    below = psutil.Process(trainer.pid).children(recursive=True)
    os.kill(trainer.pid, signal.SIGKILL)
    trainer.wait()

    def ended(process: psutil.Process) -> bool:
        with suppress(psutil.NoSuchProcess):
            return process.status() == psutil.STATUS_ZOMBIE
        return True

    assert _gone(lambda: all(map(ended, below)))


def test_hundreds_of_programs_leave_the_machine_as_it_was() -> None:
    """Below a process that adopts orphans, as a run's main process does: nobody else would reap them."""
    code = """
import os, threading, psutil
from verl_ext.processes import adopt_orphans
adopt_orphans()
limits = Limits(wall_s=1.5, cpu_s=1)
programs = ["print(1)", "1 / 0", "import os\\nos._exit(3)", "while True: print('x' * 1000)", "open('/tmp/x', 'w')"]
def state():
    mounts = open("/proc/self/mountinfo").read()
    return os.listdir("/proc/self/fd"), mounts.count("\\n")
def work(numbers):
    for number in numbers:
        program = "while True: pass" if number % 50 == 0 else programs[number % len(programs)]
        bubblewrap.BubblewrapRunner().run(program, "x", limits)
work(range(1, 3))
before = state()
numbers = iter(range(300))
threads = [threading.Thread(target=work, args=(numbers,)) for _ in range(3)]
for thread in threads: thread.start()
for thread in threads: thread.join()
after = state()
print(before == after or (before, after), psutil.Process().children(recursive=True))
"""
    assert _in_a_process(code) == "True []\n"
