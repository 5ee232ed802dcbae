"""What befalls a worker: a failure of the machine is retried and never an answer's fault."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from recipe.flowrl.common.project import PROJECT
from recipe.flowrl.tasks.math import reward, worker_pool
from recipe.flowrl.tasks.math.worker_pool import OverLimit, WorkerFailed, WorkerPool

EQUIVALENCE = "recipe.flowrl.tasks.math.equivalence"
FAILING = "failing_worker"
HELPERS = str(PROJECT / "tests" / "helpers")


@pytest.fixture
def pool(monkeypatch: pytest.MonkeyPatch) -> Iterator[WorkerPool]:
    monkeypatch.setenv("PYTHONPATH", HELPERS)
    pool = WorkerPool(FAILING, size=1, limit_s=1.0)
    yield pool
    pool.close()


def process(pool: WorkerPool, **request: str) -> int:
    """The process id of the worker that answered."""
    return pool.ask(request)["process"]


@pytest.mark.parametrize("gone", [True, False])
def test_a_worker_that_was_killed_while_it_was_idle_is_replaced_unnoticed(pool: WorkerPool, gone: bool) -> None:
    """Whether the parent hears of the end by its pipe or by the reply that doesn't come: as often as it happens."""
    for _ in range(3):
        before = process(pool)
        worker = pool._idle.queue[-1]
        os.kill(before, signal.SIGKILL)
        if gone:
            worker._process.wait()  # its end of the pipe is closed now: the write fails
        assert process(pool) != before


def test_a_worker_that_is_killed_at_work_is_replaced_and_asked_again(pool: WorkerPool, tmp_path: Path) -> None:
    before = process(pool)
    assert process(pool, do="die", once=str(tmp_path / "once")) != before


def test_where_the_second_worker_is_killed_too_the_grader_failed(pool: WorkerPool) -> None:
    with pytest.raises(WorkerFailed, match="exit status -9"):
        process(pool, do="die")
    assert process(pool), "the place is there for the next caller"


@pytest.mark.parametrize("what", ["remember", "recurse", "compute", "crash"])
def test_what_a_request_does_to_its_worker_is_its_own_fault(pool: WorkerPool, what: str) -> None:
    with pytest.raises(OverLimit):
        process(pool, do=what)
    assert process(pool)


def test_a_crash_that_does_not_come_back_is_none(pool: WorkerPool, tmp_path: Path) -> None:
    assert process(pool, do="crash", once=str(tmp_path / "once"))


def test_a_worker_that_gets_no_cpu_time_is_no_time_out(pool: WorkerPool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_pool, "_STALL_LIMIT_S", -0.8)  # of the second that is granted 0.2 s are left
    with pytest.raises(WorkerFailed, match="no reply within 0.2 s"):
        process(pool, do="sleep")


def test_an_error_is_reported_and_the_worker_lives_on(pool: WorkerPool) -> None:
    before = process(pool)
    with pytest.raises(WorkerFailed, match="KeyError"):
        process(pool, do="raise")
    assert process(pool) == before


def test_a_worker_that_does_not_start_is_started_again_and_then_given_up(
    pool: WorkerPool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("FAILING_WORKER_STARTS", str(tmp_path / "starts"))
    with pytest.raises(WorkerFailed, match="can't be started: exit status 3"):
        process(pool)
    assert len((tmp_path / "starts").read_text().split()) == 2


def test_a_machine_without_processes_is_a_failure_of_the_grader(
    pool: WorkerPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object, **__: object) -> None:
        raise BlockingIOError("Resource temporarily unavailable")

    monkeypatch.setattr(worker_pool.subprocess, "Popen", refused)
    monkeypatch.setattr(reward, "_pool", lambda *_: pool)
    score = reward.compute_score("math", r"\boxed{2x}", "x+x")
    assert score["grader_failed"] == 1.0 and score["timed_out"] == 0.0
    assert not reward.same_answer("2x", "x+x")


def test_an_answer_over_the_limit_is_wrong(pool: WorkerPool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "ask", lambda _: WorkerPool.ask(pool, {"do": "remember"}))
    monkeypatch.setattr(reward, "_pool", lambda *_: pool)
    score = reward.compute_score("math", r"\boxed{2x}", "x+x")
    assert score["timed_out"] == 1.0 and score["score"] == score["grader_failed"] == 0.0


def test_many_long_answers_do_not_fill_the_memory() -> None:
    """Each is another one, so that whatever is kept of them is kept."""
    program = (
        "from pathlib import Path\n"
        f"from {EQUIVALENCE} import MEMORY_BYTES, equal\n"
        "def used():\n"
        "    return 4096 * int(Path('/proc/self/statm').read_text().split()[1])\n"
        "for n in range(300):\n"
        "    equal(['7'], f'{n}' + '+x^2' * 240)\n"
        "first = used()\n"
        "for n in range(300):\n"
        "    equal(['7'], f'{n}' + '+y^2' * 240)\n"
        "assert used() < 1.2 * first < MEMORY_BYTES / 4, (first, used())\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=PROJECT, timeout=120)


def test_threads_share_the_workers() -> None:
    pool, results = WorkerPool(EQUIVALENCE, size=1, limit_s=20.0), []

    def ask(index: int) -> None:
        results.append((index, pool.ask({"references": ["x+1"], "answer": f"{index}+x"})["equal"]))

    threads = [threading.Thread(target=ask, args=(index,), daemon=True) for index in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    pool.close()
    assert sorted(results) == [(index, index == 1) for index in range(8)]


@pytest.mark.parametrize("busy", [False, True])
def test_workers_end_with_their_parent(busy: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([HELPERS, str(PROJECT)]))
    ask = "threading.Thread(target=pool.ask, args=({'do': 'compute'},), daemon=True).start(); time.sleep(0.3)"
    program = (
        "import os, signal, threading, time\n"
        "from recipe.flowrl.tasks.math.worker_pool import WorkerPool\n"
        f"pool = WorkerPool({FAILING!r}, 1, 2.0)\n"
        "print(pool.ask({})['process'], flush=True)\n"
        f"{ask if busy else ''}\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=PROJECT, timeout=60)
    worker = Path("/proc", ended.stdout.strip())
    deadline = time.monotonic() + 30
    while worker.exists() and "Z" not in (worker / "stat").read_text().split()[2] and time.monotonic() < deadline:
        time.sleep(0.05)
    assert ended.stdout.strip() and not (worker / "exe").exists()
