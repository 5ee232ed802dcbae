"""vLLM rollout: weight-sync sockets that two runs on one host can't share, and a sync that fails instead of hanging."""

import os
from typing import Any

import ray
import zmq
from verl.workers.rollout.vllm_rollout import ServerAdapter

from verl_ext.guardian import RUN_ID

WEIGHT_SYNC_TIMEOUT_S = float(os.environ.get("VERL_EXT_WEIGHT_SYNC_TIMEOUT_S", "600"))


class WeightSyncError(RuntimeError):
    """The rollout server stopped answering while new weights were sent to it."""


def run_unique_job_id() -> str:
    """Ray's job id with the run's own id, or where it has none, in a cluster that others started, with Ray's port.

    Every fresh local Ray cluster calls its first job 01000000, so the id alone doesn't tell two runs on one host apart.
    """
    context = ray.get_runtime_context()
    return f"{context.get_job_id()}-{os.environ.get(RUN_ID) or context.gcs_address.rsplit(':', 1)[-1]}"


class BoundedServerAdapter(ServerAdapter):
    """verl's vLLM server adapter with a time limit on each message of a weight sync.

    verl waits without a limit for the receiver to be there and to acknowledge, so that an error in the vLLM worker
    leaves the trainer hanging. ``VERL_EXT_WEIGHT_SYNC_TIMEOUT_S`` (seconds, default 600) bounds the wait.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.zmq_handle = self.zmq_handle.replace(ray.get_runtime_context().get_job_id(), run_unique_job_id())

    async def update_weights(self, *args: Any, **kwargs: Any) -> None:
        """Send new weights to the rollout server.

        Raises:
            WeightSyncError: a message wasn't acknowledged in time.
        """
        context = zmq.Context.instance()
        limits = (zmq.RCVTIMEO, zmq.SNDTIMEO)  # a send waits as well, for somebody to connect
        for limit in limits:
            context.setsockopt(limit, int(WEIGHT_SYNC_TIMEOUT_S * 1000))
        # A socket with an unsent message must not keep the process from ending.
        context.setsockopt(zmq.LINGER, 0)
        try:
            await super().update_weights(*args, **kwargs)
        except zmq.Again as error:
            raise WeightSyncError(
                f"weight sync: no answer from the vLLM worker of replica {self.replica_rank} in "
                f"{WEIGHT_SYNC_TIMEOUT_S:.0f} s; its own error is in the log of the vLLM engine process above"
            ) from error
        finally:
            for limit in limits:
                context.setsockopt(limit, -1)
