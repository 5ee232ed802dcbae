"""Deaths and stalls as the supervisor sees them, on processes that carry the titles of Ray's and vLLM's."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator

import psutil
import pytest
from ray.core.generated.common_pb2 import ActorDiedErrorContext
from ray.exceptions import ActorDiedError, OutOfMemoryError

from verl_ext import supervision
from verl_ext.faults import ProcessDied, RunFault, Stalled
from verl_ext.supervision import Member, Supervisor, member

Start = Callable[[str], subprocess.Popen]


@pytest.fixture
def start() -> Iterator[Start]:
    """Start a process whose title is the given one."""
    processes: list[subprocess.Popen] = []

    def popen(title: str) -> subprocess.Popen:
        processes.append(subprocess.Popen([title, "60"], executable="/bin/sleep"))
        return processes[-1]

    yield popen
    for process in processes:
        process.kill()
        process.wait()


class Watched:
    """A supervisor at work, and what it had to say."""

    def __init__(self, watchdog_s: float | None = None, grace_s: float = 0.2) -> None:
        self.faults: list[RunFault] = []
        self.stalled: list[Member] = []
        self.called = threading.Event()
        self.supervisor = Supervisor(self._end, watchdog_s, self.stalled.extend, grace_s)

    def _end(self, fault: RunFault) -> None:
        self.faults.append(fault)
        self.called.set()


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervision, "POLL_S", 0.05)
    monkeypatch.setattr(supervision, "FAILING_GRACE_S", 1.0)


def died(pid: int) -> ActorDiedError:
    """What Ray raises after the death of an actor in this process."""
    context = ActorDiedErrorContext(
        class_name="Actor", actor_id=bytes(16), pid=pid, node_ip_address="127.0.0.1", error_message="it is dead"
    )
    return ActorDiedError(context)


def kill(process: subprocess.Popen, reap: bool = True) -> None:
    process.send_signal(signal.SIGKILL)
    if reap:
        process.wait()
    time.sleep(0.3)


@pytest.mark.parametrize(
    ("title", "kind"),
    [
        ("/site-packages/ray/core/src/ray/gcs/gcs_server", "Ray's head service"),
        ("/site-packages/ray/core/src/ray/raylet/raylet", "Ray's node service"),
        ("ray::TaskRunnerV1.run", "the trainer"),
        ("ray::WorkerDict.actor_rollout_ref_update_actor", "a training worker"),
        ("ray::CPUHttpServer.generate", "a vLLM server"),
        ("VLLM::EngineCore", "a vLLM engine process"),
        ("VLLM::Worker_TP0", "a vLLM engine process"),
        ("ray::SeededAgentLoopWorker", "an agent loop worker"),
        ("ray::RewardLoopWorker.compute_score", "a reward worker"),
        ("ray::SimpleStorageUnit", "a part of the data queue"),
        ("ray::GlobalRequestLoadBalancer", "the load balancer of the rollouts"),
        ("ray::Rendezvous.wait", None),
        ("ray::IDLE", None),
        ("ray::get_node_ip", None),
        ("/bin/sleep", None),
    ],
)
def test_kinds(start: Start, title: str, kind: str | None) -> None:
    process = start(title)
    time.sleep(0.1)
    found = member(psutil.Process(process.pid))
    assert (found and found.kind) == kind


def test_a_death_ends_the_run_and_is_named(start: Start) -> None:
    worker, watched = start("ray::WorkerDict.update_actor"), Watched()
    with watched.supervisor.watching():
        time.sleep(0.3)
        kill(worker, reap=False)
        assert watched.called.wait(5)
    assert isinstance(watched.faults[0], ProcessDied)
    assert str(watched.faults[0]) == f"a training worker (WorkerDict, pid {worker.pid}) was ended by SIGKILL"


def test_the_one_that_took_the_others_along_is_named(start: Start) -> None:
    processes = [start(title) for title in ("ray::WorkerDict", "/x/raylet", "ray::CPUHttpServer")]
    watched = Watched()
    time.sleep(0.2)
    watched.supervisor._look()
    for process in processes:
        kill(process)
    assert "raylet" in str(watched.supervisor.fault_behind(RuntimeError("x")))


def test_who_was_killed_comes_before_who_ended_by_itself(start: Start) -> None:
    """The node service is a child of the main process, so that its signal is known; its agents aren't."""
    agent, node_service, watched = start("ray::RuntimeEnvAgent"), start("/x/raylet"), Watched()
    time.sleep(0.2)
    watched.supervisor._look()
    kill(agent)
    kill(node_service, reap=False)
    assert str(watched.supervisor.fault_behind(RuntimeError("x"))) == (
        f"Ray's node service (raylet, pid {node_service.pid}) was ended by SIGKILL"
    )
    assert psutil.Process(node_service.pid).status() == psutil.STATUS_ZOMBIE, "left to who started it"


def test_a_process_comes_before_the_child_that_is_killed_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM's engine is, when its server dies. Orphans come to the main process, so that their signal is known there."""
    body = "import subprocess, time; engine = subprocess.Popen(['VLLM::EngineCore', '60'], executable='/bin/sleep'); "
    body += "print(engine.pid, flush=True); time.sleep(60)"
    server = subprocess.Popen(["ray::CPUHttpServer", "-c", body], executable=sys.executable, stdout=subprocess.PIPE)
    engine, watched = int(server.stdout.readline()), Watched()
    time.sleep(0.2)
    watched.supervisor._look()
    monkeypatch.setattr(supervision, "signal_that_ended", lambda pid: "SIGKILL" if pid == engine else None)
    os.kill(engine, signal.SIGKILL)
    server.kill()
    server.communicate()
    fault = watched.supervisor.fault_behind(RuntimeError("x"))
    assert str(fault) == f"a vLLM server (CPUHttpServer, pid {server.pid}) died"


def test_who_ended_first_is_named_although_others_follow(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervision, "POLL_S", 2.0)
    agents, watched = [start("ray::RuntimeEnvAgent"), start("ray::DashboardAgent")], Watched()
    time.sleep(0.2)
    with watched.supervisor.watching():
        time.sleep(0.3)
        for agent in (*agents, start("/x/raylet")):
            agent.kill()
            time.sleep(0.1)
        assert watched.called.wait(5)
    first = f"an agent of Ray's node service (RuntimeEnvAgent, pid {agents[0].pid})"
    assert str(watched.faults[0]) == f"{first} was ended by SIGKILL"


def test_a_death_while_it_looks_around_is_noticed(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the list of processes and the look at one's title."""
    worker, watched, look_at = start("ray::WorkerDict"), Watched(), supervision.member
    time.sleep(0.2)
    watched.supervisor._look()

    def too_late(process: psutil.Process) -> Member | None:
        if process.pid == worker.pid:
            kill(worker)
        return look_at(process)

    monkeypatch.setattr(supervision, "member", too_late)
    watched.supervisor._look()
    assert "WorkerDict" in str(watched.supervisor.fault_behind(RuntimeError("x")))


def test_who_comes_and_goes_is_no_death(start: Start) -> None:
    processes, watched = [start("ray::IDLE"), start("ray::get_node_ip")], Watched()
    with watched.supervisor.watching():
        time.sleep(0.2)
        for process in processes:
            kill(process)
        assert not watched.called.wait(0.5)
    assert watched.supervisor.fault_behind(RuntimeError("x")) is None


def test_a_fork_of_a_worker_is_no_worker() -> None:
    """It has the worker's title for as long as it runs no program of its own."""
    forks = "import os, time\nfor _ in range(20):\n    os.fork() or (time.sleep(0.2), os._exit(0))\n    os.wait()"
    worker = subprocess.Popen(["ray::WorkerDict", "-c", forks], executable=sys.executable)
    watched = Watched()
    try:
        with watched.supervisor.watching():
            assert not watched.called.wait(2)
            assert [m.process.pid for m in watched.supervisor._members.values()] == [worker.pid]
    finally:
        worker.kill()
        worker.wait()


def test_a_run_that_is_done_ends_its_own_processes(start: Start) -> None:
    storage, watched = start("ray::SimpleStorageUnit"), Watched()
    with watched.supervisor.watching():
        time.sleep(0.2)
        watched.supervisor.closing()
        kill(storage)
        assert not watched.called.wait(0.5)


def test_a_run_that_fails_ends_its_data_queue_first(start: Start) -> None:
    """That is no cause, unless Ray's error names the process; a run that then doesn't end is ended."""
    storage, watched = start("ray::SimpleStorageUnit"), Watched()
    with watched.supervisor.watching():
        time.sleep(0.2)
        watched.supervisor.failing(time.time())
        kill(storage)
        assert watched.supervisor.fault_behind(ValueError("its own error")) is None
        assert watched.supervisor.fault_behind(died(storage.pid + 1)) is None, "of another process"
        assert "SimpleStorageUnit" in str(watched.supervisor.fault_behind(died(storage.pid)))
        assert watched.supervisor.fault_behind(OutOfMemoryError("the node was low on memory")) is None
        assert not watched.faults
        assert watched.called.wait(5)


def test_a_death_before_the_failure_is_its_cause(start: Start) -> None:
    storage, watched = start("ray::SimpleStorageUnit"), Watched(grace_s=60)
    with watched.supervisor.watching():
        time.sleep(0.2)
        kill(storage)
        watched.supervisor.failing(time.time())
        assert "SimpleStorageUnit" in str(watched.supervisor.fault_behind(ValueError("the queue doesn't answer")))


def test_a_stall_tells_the_phase_and_who_is_there(start: Start) -> None:
    start("VLLM::EngineCore")
    watched = Watched(watchdog_s=0.6)
    watched.supervisor.progress("rollout")
    with watched.supervisor.watching():
        assert watched.called.wait(5)
    assert isinstance(watched.faults[0], Stalled)
    assert str(watched.faults[0]) == "no progress in 0.6 s, in phase 'rollout'"
    assert [m.name for m in watched.stalled] == ["VLLM::EngineCore"]


def test_progress_holds_the_watchdog_off() -> None:
    watched = Watched(watchdog_s=0.6)
    with watched.supervisor.watching():
        for _ in range(8):
            watched.supervisor.progress("update")
            assert not watched.called.wait(0.2)


def test_stacks_of_another_process() -> None:
    from verl_ext.stacks import innermost_frame, python_stacks

    script = "import time\ndef waits_here():\n    print('up', flush=True)\n    time.sleep(60)\nwaits_here()"
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    try:
        process.stdout.readline()
        stacks = python_stacks([process.pid])[process.pid]
        if stacks.startswith("no stacks: ") and "ermission" in stacks:
            pytest.skip(f"the kernel doesn't let py-spy look: {stacks}")
        assert innermost_frame(stacks).startswith("waits_here")
        native = subprocess.Popen(["sleep", "60"])
        reason = python_stacks([native.pid])[native.pid]
        native.kill()
        native.wait()
        assert reason.startswith("no stacks: Error: Failed to find python version")
        assert innermost_frame(reason) == reason
        assert len(reason) < 120
    finally:
        process.kill()
        process.wait()


def test_a_process_on_its_way_to_its_end_is_not_forgotten(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has given its memory back, its title with it, but still counts as running: large ones take a while to go."""
    engine, watched = start("VLLM::EngineCore"), Watched()
    time.sleep(0.2)
    watched.supervisor._look()
    with monkeypatch.context() as patched:
        patched.setattr(psutil.Process, "cmdline", lambda self: [])
        watched.supervisor._look()
    kill(engine)
    assert f"pid {engine.pid}" in str(watched.supervisor.fault_behind(RuntimeError("x")))
