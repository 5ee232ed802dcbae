"""The sandbox against programs that mean harm: none gets through, and honest ones run as before."""

import contextlib
import http.server
import json
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from recipe.flowrl.common.errors import UserError
from recipe.flowrl.sandbox import bubblewrap, choose
from recipe.flowrl.sandbox.fusion import SandboxFusionRunner
from recipe.flowrl.sandbox.outcome import Limits, Outcome, SandboxError, Status

LIMITS = Limits(wall_s=2.0, cpu_s=2, memory_bytes=512 * 2**20, file_bytes=2**20, output_bytes=65536)
needs_bubblewrap = pytest.mark.skipif(bubblewrap.problem() is not None, reason=f"no sandbox: {bubblewrap.problem()}")

REFUSED = {  # each prints "through" if it succeeds
    "fork": "import os\nif os.fork() == 0: print('through')",
    "vfork": "import subprocess\nsubprocess.run(['/bin/true'])",
    "multiprocessing": "import multiprocessing as m\nm.Process(target=print).start()",
    "memory": "x = bytearray(600 * 2**20)",
    "memory in files": "import os\nfor i in range(50): os.write(os.memfd_create('x'), b'x' * 2**20)",
    "shared memory": "open('/dev/shm/x', 'wb').write(b'x')",
    "one large file": "open('/tmp/x', 'wb').write(b'x' * 2**21)",
    "a full disk": "for i in range(100): open(f'/tmp/{i}', 'wb').write(b'x' * 2**20)",
    "write to the root": "open('/x', 'w')",
    "write to the system": "open('/usr/bin/x', 'w')",
    "write to its program": "open('/program.py', 'w')",
    "write to the kernel": "open('/proc/sys/kernel/core_pattern', 'w')",
    "write to a device": "open('/dev/sda', 'wb')",
    "read the users": "open('/etc/passwd')",
    "read the trainer's files": "open({file!r})",
    "connect to this machine": "import socket\nsocket.create_connection(('127.0.0.1', {port}), timeout=1)",
    "connect to the world": "import socket\nsocket.create_connection(('1.1.1.1', 53), timeout=1)",
    "look up a name": "import socket\nsocket.getaddrinfo('example.com', 80)",
    "ptrace": "import ctypes\nc = ctypes.CDLL(None, use_errno=True)\nassert c.ptrace(0, 0, 0, 0) == 0",
    "unshare": "import ctypes\nassert ctypes.CDLL(None).unshare(0x10000000) == 0",
    "mount": "import ctypes\nassert ctypes.CDLL(None).mount(b'x', b'/tmp', b'tmpfs', 0, None) == 0",
    "raise its limits": "import resource as r\nr.setrlimit(r.RLIMIT_AS, (r.RLIM_INFINITY, r.RLIM_INFINITY))",
    "unpickle a command": "import pickle, os\n"
    "class Command:\n    def __reduce__(self): return (os.system, ('echo done > /tmp/x',))\n"
    "assert pickle.loads(pickle.dumps(Command())) == 0",
}
KILLED = {
    "fork again and again": ("import os\nwhile True:\n  try: os.fork()\n  except OSError: pass", Status.TIMED_OUT),
    "loop": ("while True: pass", Status.TIMED_OUT),
    "sleep": ("import time\ntime.sleep(1000)", Status.TIMED_OUT),
    "ignore signals": (
        "import signal\nfor s in range(1, 32):\n  try: signal.signal(s, signal.SIG_IGN)\n  except OSError: pass\n"
        "while True: pass",
        Status.TIMED_OUT,
    ),
    "sleep with closed output": ("import os, time\nos.close(1)\nos.close(2)\ntime.sleep(1000)", Status.TIMED_OUT),
    "flood stdout": ("while True: print('x' * 1000)", Status.TOO_MUCH_OUTPUT),
    "start threads without end": (
        "import threading, time\nthreading.stack_size(65536)\n"
        "while True: threading.Thread(target=time.sleep, args=(1000,)).start()",
        Status.TOO_MANY_THREADS,
    ),
}


def run(program: str, stdin: str = "", limits: Limits = LIMITS) -> Outcome:
    return bubblewrap.BubblewrapRunner().run(program, stdin, limits)


@contextlib.contextmanager
def server(reply: dict, status: int = 200) -> Iterator[tuple[str, list[dict]]]:
    """An HTTP server that answers every request with ``reply``; yields its address and what it was sent."""
    received: list[dict] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            received.append({"path": self.path, **json.loads(self.rfile.read(int(self.headers["Content-Length"])))})
            body = json.dumps(reply).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listening:
        threading.Thread(target=listening.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{listening.server_port}", received
        listening.shutdown()


@needs_bubblewrap
def test_an_honest_program_has_its_input_numpy_threads_and_recursion() -> None:
    program = (
        "import sys, threading, numpy\nsys.setrecursionlimit(10**6)\nthreading.stack_size(64 * 2**20)\n"
        "def depth(n): return n and 1 + depth(n - 1)\n"
        "def main(): print(int(numpy.sum([int(x) for x in sys.stdin.read().split()])), depth(20000))\n"
        "t = threading.Thread(target=main); t.start(); t.join()\nopen('/tmp/x', 'w').write('ok')"
    )
    assert run(program, "1 2\n3\n") == Outcome(Status.FINISHED, "6 20000\n")


@needs_bubblewrap
@pytest.mark.parametrize("harm", REFUSED)
def test_it_is_refused(harm: str) -> None:
    with server({}) as (address, received):
        program = REFUSED[harm].replace("{port}", address.rpartition(":")[2]).replace("{file!r}", repr(__file__))
        outcome = run(f"{program}\nprint('through')")
    assert outcome.status == Status.FAILED
    assert "through" not in outcome.stdout and not received


@needs_bubblewrap
@pytest.mark.parametrize("harm", KILLED)
def test_it_is_ended(harm: str) -> None:
    program, status = KILLED[harm]
    started = time.monotonic()
    assert run(program).status == status
    assert time.monotonic() - started < LIMITS.wall_s + 3
    left = [child for child in psutil.Process().children(recursive=True) if "bwrap" in child.name()]
    assert not left


@needs_bubblewrap
def test_the_environment_is_not_the_trainers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_SECRET_TOKEN", "secret")
    program = "import os\nprint(os.environ)\nfor p in os.listdir('/proc'):\n"
    program += "  if p.isdigit(): print(p, open(f'/proc/{p}/environ').read() if p != '1' else '')"
    outcome = run(program)
    assert outcome.status == Status.FINISHED and "PATH" in outcome.stdout
    assert "SECRET" not in outcome.stdout and "secret" not in outcome.stdout


@needs_bubblewrap
def test_it_sees_no_process_of_the_machine_and_cannot_kill_its_parent() -> None:
    program = (
        "import os, signal\nprint(sorted(int(p) for p in os.listdir('/proc') if p.isdigit()))\n"
        "for pid in (os.getppid(), 1):\n"
        "  try: os.kill(pid, signal.SIGKILL)\n  except OSError: pass\nprint('still here', os.getppid())"
    )
    outcome = run(program)
    assert outcome.stdout in ("[1, 2]\nstill here 1\n", ""), "nothing else to see, and it harms itself at most"


@needs_bubblewrap
def test_it_leaves_nothing_outside(tmp_path: Path) -> None:
    mark = f"left_{os.getpid()}"
    outcome = run(f"open('/tmp/{mark}', 'w').write('x')\nimport os\nos.makedirs('{tmp_path}')\nprint('made')")
    assert outcome.stdout == "made\n", "its /tmp is its own"
    assert not Path("/tmp", mark).exists() and not list(tmp_path.iterdir())


@needs_bubblewrap
def test_throughput_recovers_from_an_attack() -> None:
    def honest() -> float:
        started = time.monotonic()
        assert run("print(1)").stdout == "1\n"
        return time.monotonic() - started

    before = min(honest() for _ in range(3))
    attacks = [KILLED["fork again and again"][0], KILLED["flood stdout"][0], REFUSED["a full disk"]]
    threads = [threading.Thread(target=run, args=(program,)) for program in attacks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert min(honest() for _ in range(3)) < 3 * before + 0.2


@needs_bubblewrap
def test_silence_has_its_own_limit() -> None:
    limits = Limits(wall_s=20.0, silence_s=0.7)
    started = time.monotonic()
    outcome = run("import time\nprint(1, flush=True)\ntime.sleep(0.3)\nprint(2, flush=True)\ntime.sleep(9)", "", limits)
    assert outcome == Outcome(Status.TIMED_OUT, "1\n2\n") and time.monotonic() - started < 6


@needs_bubblewrap
def test_a_program_need_not_read_its_input() -> None:
    assert run("print(1)", "x" * 10**6) == Outcome(Status.FINISHED, "1\n")
    assert run("import os\nos.close(0)\nprint(1)", "x" * 10**6).stdout == "1\n"


def test_without_a_sandbox_the_run_does_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bubblewrap, "problem", lambda: "bwrap isn't installed")
    choose.gate.cache_clear()
    with pytest.raises(
        UserError, match=r"bwrap isn't installed.*reward\.sandbox_fusion\.url.*unsafe_without_isolation"
    ):
        choose.gate("bubblewrap", None, 1)
    with pytest.raises(UserError, match="choose bubblewrap"):
        choose.gate("none", None, 1)
    with choose.gate("unsafe_without_isolation", None, 1).slot() as runner:
        assert runner.run("print(input())", "x", LIMITS) == Outcome(Status.FINISHED, "x\n")
        assert runner.run("while True: pass", "", LIMITS).status == Status.TIMED_OUT
    choose.gate.cache_clear()


def test_a_machine_that_forbids_namespaces_is_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    bubblewrap.problem.cache_clear()
    monkeypatch.setattr(bubblewrap.shutil, "which", lambda name: None)
    assert "apt-get install bubblewrap" in bubblewrap.problem()
    bubblewrap.problem.cache_clear()
    monkeypatch.setattr(bubblewrap.seccomp, "supported", lambda: False)
    assert "system call filter" in bubblewrap.problem()
    bubblewrap.problem.cache_clear()


def test_a_gate_bounds_what_runs_at_once() -> None:
    running, most = [], []

    class Slow:
        def run(self, program: str, stdin: str, limits: Limits) -> Outcome:
            running.append(1)
            most.append(len(running))
            time.sleep(0.05)
            running.pop()
            return Outcome(Status.FINISHED, "")

    gate = choose.Gate(Slow(), 2)

    def use() -> None:
        with gate.slot() as runner:
            runner.run("", "", LIMITS)

    threads = [threading.Thread(target=use) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(most) == 8 and max(most) == 2


@pytest.mark.parametrize(
    ("run_result", "expected"),
    [
        ({"status": "Finished", "return_code": 0, "stdout": "3\n"}, Outcome(Status.FINISHED, "3\n")),
        ({"status": "Finished", "return_code": 1, "stdout": ""}, Outcome(Status.FAILED, "")),
        ({"status": "TimeLimitExceeded", "stdout": ""}, Outcome(Status.TIMED_OUT, "")),
        (
            {"status": "Finished", "return_code": 0, "stdout": "x" * 70000},
            Outcome(Status.TOO_MUCH_OUTPUT, "x" * 65536),
        ),
    ],
)
def test_a_sandbox_fusion_server_is_asked(run_result: dict, expected: Outcome) -> None:
    with server({"status": "Success", "run_result": run_result}) as (address, received):
        assert SandboxFusionRunner(f"{address}/run_code").run("print(3)", "in", LIMITS) == expected
    assert received[0]["path"] == "/run_code" and received[0]["code"] == "print(3)" and received[0]["stdin"] == "in"
    assert received[0]["language"] == "python" and received[0]["run_timeout"] == LIMITS.wall_s


def test_a_server_that_fails_says_nothing_about_the_program(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    with server({}, status=503) as (address, received), pytest.raises(SandboxError, match="503, 3 times"):
        SandboxFusionRunner(address).run("print(3)", "", LIMITS)
    assert len(received) == 3
    with server({"status": "SandboxError", "message": "no slot"}) as (address, _):
        with pytest.raises(SandboxError, match="no slot"):
            SandboxFusionRunner(address).run("print(3)", "", LIMITS)
    with pytest.raises(SandboxError, match="ConnectionError"):
        SandboxFusionRunner("http://127.0.0.1:9").run("print(3)", "", LIMITS)
