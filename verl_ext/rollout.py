"""vLLM rollout: weight-sync sockets in a directory of the run's own, and a sync that fails instead of hanging."""

import os
import stat
import time
from contextlib import suppress
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import ray
import zmq
from verl.workers.rollout.vllm_rollout import ServerAdapter
from verl.workers.rollout.vllm_rollout.bucketed_weight_transfer import BucketedWeightSender

from verl_ext.faults import RunFault
from verl_ext.guardian import RUN_ID, run_directory
from verl_ext.patches import patch_weight_sender

WEIGHT_SYNC_TIMEOUT_S = float(os.environ.get("VERL_EXT_WEIGHT_SYNC_TIMEOUT_S", "600"))

SYNC_DIRECTORY = "VERL_EXT_SYNC_DIRECTORY"
"""Environment variable: where a rollout server's own processes, which know nothing of Ray, find the sockets."""


_LOOK_MS = 200
"""So often somebody who waits for the rollout server asks whether it has failed."""

_RECEIVER: ContextVar[ray.ObjectRef | None] = ContextVar("receiver", default=None)
"""The call of the rollout server that receives the weights which this context sends."""


class WeightSyncError(RunFault):
    """The rollout server failed or stopped answering while new weights were sent, or they can't be sent safely."""


def sync_directory() -> Path:
    """The run's directory for the sockets of the weight sync on this node; made where it isn't there.

    What comes through such a socket is unpickled, so only this user may enter. It is the guardian's directory of the
    run; where the run has none, in a Ray cluster that others started, one named after Ray's job and port, since every
    Ray cluster calls its first job 01000000.

    Raises:
        WeightSyncError: somebody else owns it, or others may enter it.
    """
    if named := os.environ.get(SYNC_DIRECTORY):
        directory = Path(named)
    elif run_id := os.environ.get(RUN_ID):
        directory = run_directory(run_id)
    else:
        context = ray.get_runtime_context()
        port = context.gcs_address.rsplit(":", 1)[-1]
        directory = run_directory(f"{os.geteuid()}-{context.get_job_id()}-{port}")
    with suppress(FileExistsError):
        directory.mkdir(mode=0o700)
    found = directory.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o077:
        raise WeightSyncError(
            f"weight sync: {directory} isn't a directory that only this user can enter, and what comes through its "
            "sockets is trusted: remove it, or set TMPDIR to a directory of your own"
        )
    return directory


def own_handle(handle: str) -> str:
    """verl's address of a weight-sync socket, which is in ``/tmp``, as the run's; sender and receiver come here."""
    return f"ipc://{sync_directory() / Path(handle.removeprefix('ipc://')).name}"


class WatchedSocket:
    """What verl's sender uses of its socket, with waits that end: with the receiver's failure, or at the time limit.

    Args:
        socket: to the vLLM worker.
        receiver: the server's call that receives, where this rank made it. A rank without a server has only the limit,
            but the run ends by then because of the rank that has one.
    """

    def __init__(self, socket: zmq.Socket[bytes], receiver: ray.ObjectRef | None) -> None:
        self._socket, self._receiver = socket, receiver

    def close(self) -> None:
        self._socket.close(linger=0)  # a socket with an unsent message must not keep the process from ending

    def send_pyobj(self, message: Any) -> None:
        self._wait(zmq.POLLOUT)  # for somebody to connect
        self._socket.send_pyobj(message)

    def recv(self) -> bytes:
        self._wait(zmq.POLLIN)
        return self._socket.recv()

    def _wait(self, event: int) -> None:
        deadline = time.monotonic() + WEIGHT_SYNC_TIMEOUT_S
        while not self._socket.poll(_LOOK_MS, event):
            if self._receiver is not None and ray.wait([self._receiver], timeout=0)[0]:
                ray.get(self._receiver)  # raises, unless it ended without taking everything
                raise WeightSyncError("weight sync: the vLLM worker ended before it had all weights")
            if time.monotonic() > deadline:
                raise zmq.Again


class WatchedSender(BucketedWeightSender):
    """verl's sender of weights, on a :class:`WatchedSocket`."""

    socket: Any

    def _init_socket(self) -> None:
        super()._init_socket()
        self.socket = WatchedSocket(self.socket, _RECEIVER.get())


class BoundedServerAdapter(ServerAdapter):
    """verl's vLLM server adapter with a socket of the run's own, and a weight sync that ends with an error.

    verl waits without a limit for the receiver to be there and to acknowledge, so that an error in the vLLM worker
    leaves the trainer hanging. Here it is raised at once; ``VERL_EXT_WEIGHT_SYNC_TIMEOUT_S`` (seconds, default 600)
    bounds the wait for each message where nobody says anything. :func:`verl_ext.patches.patch_weight_sender` has verl
    send through a :class:`WatchedSender`.
    """

    zmq_handle: str

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self._pd_role is None:  # prefill and decode apart have servers of their own, which keep verl's address
            self.zmq_handle = own_handle(self.zmq_handle)

    async def _execute_method(
        self, method: str, non_block: bool = False, timeout: float | None = None, args: tuple = (), kwargs: Any = None
    ) -> Any:
        result = await super()._execute_method(method, non_block, timeout, args, kwargs)
        if non_block:  # what receives while this rank sends
            _RECEIVER.set(result)
        return result

    async def update_weights(self, *args: Any, **kwargs: Any) -> None:
        """Send new weights to the rollout server.

        Raises:
            WeightSyncError: the vLLM worker failed, or a message wasn't acknowledged in time.
            RayTaskError: vLLM's engine is dead.
        """
        try:
            await super().update_weights(*args, **kwargs)
        except zmq.Again as error:
            raise WeightSyncError(
                f"weight sync: no answer from the vLLM worker of replica {self.replica_rank} in "
                f"{WEIGHT_SYNC_TIMEOUT_S:.0f} s; its own error is in the log of the vLLM engine process above"
            ) from error
        except ray.exceptions.RayTaskError as error:
            from vllm.v1.engine.exceptions import EngineDeadError  # with all of vLLM, which a rank doesn't need else

            if isinstance(error.cause, EngineDeadError):  # of what it died, who watches the processes knows
                raise
            said = " ".join(str(error.cause).split())
            raise WeightSyncError(
                f"weight sync: the vLLM worker of replica {self.replica_rank} failed: {said}; the log has its traceback"
            ) from error
        finally:
            _RECEIVER.set(None)


patch_weight_sender(WatchedSender)
