"""verl's vLLM rollout server: it answers groups, and its workers take new weights from a socket of the run's own."""

import os
from typing import Any

import ray
from verl.workers.rollout.replica import TokenOutput
from verl.workers.rollout.vllm_rollout.utils import vLLMColocateWorkerExtension
from verl.workers.rollout.vllm_rollout.vllm_async_server import vLLMHttpServer, vLLMReplica
from vllm.sampling_params import RequestOutputKind

from verl_ext.group_client import AnswersGroups
from verl_ext.idle import IdleClock
from verl_ext.rollout import SYNC_DIRECTORY, own_handle, sync_directory


class PrivateWorkerExtension(vLLMColocateWorkerExtension):
    """verl's extension of the vLLM worker; it receives where :class:`verl_ext.rollout.BoundedServerAdapter` sends."""

    def _get_zmq_handle(self) -> str:
        return own_handle(super()._get_zmq_handle())

    def update_weights_from_ipc(self, *args: Any, **kwargs: Any) -> None:
        """Load new weights.

        Raises:
            RuntimeError: that failed. vLLM passes an error's text on, but not what kind of error it is: this says both.
        """
        try:
            super().update_weights_from_ipc(*args, **kwargs)
        except Exception as error:
            first: BaseException = error
            while first.__context__ is not None:  # verl's receiver fails once more when it closes what is still in use
                first = first.__context__
            raise RuntimeError(f"{type(first).__name__}: {first}") from error


class PrivateHttpServer(AnswersGroups, vLLMHttpServer):
    """verl's vLLM server with such workers, which answers groups.

    Nobody reads the text that vLLM makes of each token and of each log-prob. Nor what it tells of a request before its
    end, but that it has begun: verl waits for that before it lets new weights in.
    """

    sampling = {"detokenize": False}
    sampling_in_one_go = {"output_kind": RequestOutputKind.FINAL_ONLY}

    worker_extension: type = PrivateWorkerExtension

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        os.environ[SYNC_DIRECTORY] = str(sync_directory())
        self._idle_clock = IdleClock()

    async def generate(self, *args: Any, **kwargs: Any) -> TokenOutput:
        with self._idle_clock.request():
            return await super().generate(*args, **kwargs)

    async def idle_time(self) -> tuple[float, float]:
        """Seconds in which there was no request, and all, since the server is there."""
        return self._idle_clock.read()

    def _get_worker_extension_cls(self) -> str:
        return f"{self.worker_extension.__module__}.{self.worker_extension.__qualname__}"


class PrivateReplica(vLLMReplica):
    """verl's vLLM replica, made of such servers."""

    server: type = PrivateHttpServer

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.server_class = ray.remote(self.server)
