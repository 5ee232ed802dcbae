"""The weight sync: on any platform through the run's own sockets, and with an error where the receiver is gone."""

import asyncio
import importlib
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import ray
import torch
import zmq
from vllm.v1.engine.exceptions import EngineDeadError

from recipe.flowrl.common.project import PROJECT
from verl_ext import rollout
from verl_ext.faults import RunFault
from verl_ext.guardian import RUN_ID, run_directory
from verl_ext.rollout import (
    SYNC_DIRECTORY,
    BoundedServerAdapter,
    WatchedSender,
    WeightSyncError,
    own_handle,
    sync_directory,
)

VERLS_HANDLE = "ipc:///tmp/rl-colocate-zmq-01000000-replica-0-rank-0.sock"
REGISTERED = """
import verl_ext.nonfinite, verl_ext.trainer
from verl.workers.rollout.base import get_rollout_class
from verl.workers.rollout.replica import RolloutReplicaRegistry
print(get_rollout_class("vllm", "async").__name__, RolloutReplicaRegistry.get("vllm").__name__)
"""


@pytest.fixture
def adapter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> BoundedServerAdapter:
    """The adapter of a rank without a server of its own, so that no Ray is needed."""
    monkeypatch.setattr(rollout, "WEIGHT_SYNC_TIMEOUT_S", 0.5)
    made = object.__new__(BoundedServerAdapter)
    made._has_server, made.use_shm, made.replica_rank, made.rollout_rank = False, True, 3, 1
    made.zmq_handle = f"ipc://{tmp_path}/sync.sock"
    made.config = SimpleNamespace(checkpoint_engine=SimpleNamespace(update_weights_bucket_megabytes=1))
    return made


def sync(adapter: BoundedServerAdapter) -> float:
    """Seconds until the error."""
    started = time.monotonic()
    with pytest.raises(WeightSyncError, match="no answer from the vLLM worker of replica 3 in"):
        asyncio.run(adapter.update_weights(iter([("weight", torch.ones(4))])))
    return time.monotonic() - started


def test_nobody_answers(adapter: BoundedServerAdapter) -> None:
    assert 0.4 < sync(adapter) < 5


def test_the_receiver_goes_away_in_between(adapter: BoundedServerAdapter) -> None:
    """It takes the buffer, and no bucket."""

    def receive_once() -> None:
        with zmq.Context() as context, context.socket(zmq.REP) as socket:
            socket.connect(adapter.zmq_handle)
            socket.recv()
            socket.send(b"")

    receiver = threading.Thread(target=receive_once)
    receiver.start()
    assert 0.4 < sync(adapter) < 5
    receiver.join(5)


class Failed:
    """Ray, to which the server's call has just failed."""

    exceptions = ray.exceptions

    def __init__(self, error: Exception) -> None:
        self.error = error

    def wait(self, calls: list, timeout: float) -> tuple[list, list]:
        return calls, []

    def get(self, call: object) -> None:
        raise ray.exceptions.RayTaskError("collective_rpc", "traceback", self.error)


@pytest.mark.parametrize("takes", [0, 1], ids=["before it was there", "while it loaded"])
def test_an_error_of_the_worker_ends_the_sync_at_once(
    adapter: BoundedServerAdapter, monkeypatch: pytest.MonkeyPatch, takes: int
) -> None:
    """With its text, and long before the time limit; ``takes``: messages that the worker got before."""
    monkeypatch.setattr(rollout, "WEIGHT_SYNC_TIMEOUT_S", 60)

    async def call(method: str, non_block: bool, *args: object) -> str:
        assert method == "update_weights_from_ipc" and non_block
        return "the call"

    monkeypatch.setattr(rollout.ServerAdapter, "_execute_method", lambda self, *args, **kwargs: call(*args, **kwargs))
    monkeypatch.setattr(rollout, "ray", Failed(Exception("Call to collective_rpc method failed: IndexError: \n out")))

    def receive() -> None:
        with zmq.Context() as context, context.socket(zmq.REP) as socket:
            socket.connect(adapter.zmq_handle)
            for _ in range(takes):
                socket.recv()
                socket.send(b"")

    receiver = threading.Thread(target=receive)
    receiver.start()
    started = time.monotonic()
    with pytest.raises(WeightSyncError) as raised:
        asyncio.run(adapter.update_weights(iter([("weight", torch.ones(4))])))
    receiver.join(5)
    assert time.monotonic() - started < 5
    text = "weight sync: the vLLM worker of replica 3 failed: Call to collective_rpc method failed: IndexError: out"
    assert str(raised.value).startswith(text)
    assert isinstance(raised.value, RunFault), "the console shows it as it is"


def test_a_dead_engine_is_left_to_who_watches_the_processes(
    adapter: BoundedServerAdapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All that vLLM knows is that it is dead."""

    async def call(*_: object, **__: object) -> str:
        return "the call"

    monkeypatch.setattr(rollout.ServerAdapter, "_execute_method", call)
    monkeypatch.setattr(rollout, "ray", Failed(EngineDeadError()))
    with pytest.raises(ray.exceptions.RayTaskError) as raised:
        asyncio.run(adapter.update_weights(iter([("weight", torch.ones(4))])))
    assert not isinstance(raised.value, RunFault)


def test_verls_own_sender_would_wait(tmp_path: Path) -> None:
    """Its socket has no time limit, which is why another sender stands in its place."""
    module = importlib.import_module("verl.workers.rollout.vllm_rollout.vllm_rollout")
    assert module.BucketedWeightSender is WatchedSender
    verls = WatchedSender.__base__(zmq_handle=f"ipc://{tmp_path}/sync.sock", use_shm=True)
    verls._init_socket()
    assert verls.socket.getsockopt(zmq.RCVTIMEO) == verls.socket.getsockopt(zmq.SNDTIMEO) == -1
    verls.socket.close(linger=0)


@pytest.fixture
def run_id(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setenv(RUN_ID, "abc")
    monkeypatch.delenv(SYNC_DIRECTORY, raising=False)
    return "abc"


def test_two_runs_on_one_host_have_sockets_of_their_own(run_id: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray calls the first job of each run the same, and so does verl's address."""
    one = own_handle(VERLS_HANDLE)
    monkeypatch.setenv(RUN_ID, "other")
    assert own_handle(VERLS_HANDLE) != one
    assert one == f"ipc://{run_directory(run_id)}/rl-colocate-zmq-01000000-replica-0-rank-0.sock"


def test_nobody_else_can_enter_their_directory(run_id: str) -> None:
    before = os.umask(0)
    try:
        directory = sync_directory()
    finally:
        os.umask(before)
    assert directory.stat().st_mode & 0o777 == 0o700
    assert sync_directory() == directory, "it may be there"


@pytest.mark.parametrize("what", ["open to the group", "of another user", "a link"])
def test_a_directory_that_others_control_is_refused(run_id: str, what: str, tmp_path: Path) -> None:
    if what == "a link":
        (tmp_path / "elsewhere").mkdir(mode=0o700)
        run_directory(run_id).symlink_to(tmp_path / "elsewhere")
    else:
        run_directory(run_id).mkdir(mode=0o700)
    if what == "open to the group":
        run_directory(run_id).chmod(0o750)
    elif what == "of another user":
        if os.geteuid() != 0:
            pytest.skip("only root can give a directory away")
        os.chown(run_directory(run_id), 12345, 12345)
    with pytest.raises(WeightSyncError, match="isn't a directory that only this user can enter") as refused:
        own_handle(VERLS_HANDLE)
    assert "\n" not in str(refused.value)


def test_the_vllm_worker_receives_where_the_rank_sends(run_id: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The worker's process has neither Ray nor, in a cluster that others started, the run's id."""
    from verl_ext.rollout_server import PrivateWorkerExtension

    monkeypatch.setenv(SYNC_DIRECTORY, str(sync_directory()))
    sent = own_handle(VERLS_HANDLE)
    monkeypatch.delenv(RUN_ID)
    monkeypatch.setenv("VERL_RAY_JOB_ID", "01000000")
    monkeypatch.setenv("VERL_REPLICA_RANK", "0")
    worker = object.__new__(PrivateWorkerExtension)
    worker.model_runner, worker.local_rank = SimpleNamespace(), 0
    assert worker._get_zmq_handle() == sent


def test_the_worker_tells_its_first_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not what closing the shared memory says, which the weights that it failed on still hold."""
    from verl.workers.rollout.vllm_rollout.utils import vLLMColocateWorkerExtension

    from verl_ext.rollout_server import PrivateWorkerExtension

    def receive(worker: object) -> None:
        try:
            raise IndexError("no such expert")
        finally:
            raise BufferError("cannot close")

    monkeypatch.setattr(vLLMColocateWorkerExtension, "update_weights_from_ipc", receive)
    with pytest.raises(RuntimeError, match=r"^IndexError: no such expert$"):
        object.__new__(PrivateWorkerExtension).update_weights_from_ipc()


@pytest.mark.parametrize("platform", ["cpu", "as found"])
def test_the_workers_of_every_platform_get_these_classes(platform: str) -> None:
    """Where no platform is asked for, this is what a machine with GPUs does."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("VERL_")}
    code = REGISTERED
    if platform == "cpu":
        environment |= {"VERL_PLATFORM": "cpu", "VERL_USE_EXTERNAL_MODULES": "verl_ext.cpu"}
        code = "import verl_ext.cpu.register\n" + REGISTERED
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=PROJECT, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    replica = {"cpu": "CPUReplica", "as found": "PrivateReplica"}[platform]
    assert done.stdout.split()[-2:] == ["BoundedServerAdapter", replica]


def test_the_gpu_server_runs_our_worker_extension() -> None:
    from verl.workers.rollout.vllm_rollout.vllm_async_server import vLLMHttpServer

    from verl_ext.rollout_server import PrivateHttpServer

    server = object.__new__(PrivateHttpServer)
    assert isinstance(server, vLLMHttpServer)
    module, _, name = server._get_worker_extension_cls().rpartition(".")
    assert getattr(sys.modules[module], name).__name__ == "PrivateWorkerExtension"
