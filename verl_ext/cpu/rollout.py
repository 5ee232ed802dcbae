"""vLLM's CPU build as verl's rollout server."""

import os
from typing import Any

import ray
from verl.workers.rollout.vllm_rollout.utils import vLLMColocateWorkerExtension
from verl.workers.rollout.vllm_rollout.vllm_async_server import vLLMHttpServer, vLLMReplica

from verl_ext.patches import patch_vllm_cpu_linear
from verl_ext.rollout import run_unique_job_id


class CPUWorkerExtension(vLLMColocateWorkerExtension):
    """verl's extension of the vLLM worker, with Linear weights that can be written."""

    def __new__(cls, **kwargs: Any) -> "CPUWorkerExtension":
        patch_vllm_cpu_linear()
        return super().__new__(cls, **kwargs)


class CPUHttpServer(vLLMHttpServer):
    """verl's vLLM server with the CPU worker extension."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # The vLLM worker builds the weight-sync socket's path from this; the sender's is built alike.
        os.environ["VERL_RAY_JOB_ID"] = run_unique_job_id()

    def _get_worker_extension_cls(self) -> str:
        return f"{CPUWorkerExtension.__module__}.{CPUWorkerExtension.__qualname__}"


class CPUReplica(vLLMReplica):
    """verl's vLLM replica, made of :class:`CPUHttpServer`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.server_class = ray.remote(CPUHttpServer)
