"""vLLM's CPU build as verl's rollout server."""

import os
from typing import Any

from verl_ext.patches import patch_vllm_cpu_experts, patch_vllm_cpu_linear
from verl_ext.rollout_server import PrivateHttpServer, PrivateReplica, PrivateWorkerExtension


class CPUWorkerExtension(PrivateWorkerExtension):
    """The extension of the vLLM worker, with weights of linear layers and experts that can be written."""

    def __new__(cls, **kwargs: Any) -> "CPUWorkerExtension":
        patch_vllm_cpu_linear()
        patch_vllm_cpu_experts()
        return super().__new__(cls, **kwargs)


class CPUHttpServer(PrivateHttpServer):
    """The vLLM server with the CPU worker extension."""

    worker_extension = CPUWorkerExtension

    def _preprocess_engine_kwargs(self, engine_kwargs: dict[str, Any]) -> None:
        """Run a single worker inside the engine's process: vLLM's own default, where verl always asks for ``mp``.

        A worker process of its own imports everything again (seconds, 0.8 GB) and gets every step through a queue.
        """
        super()._preprocess_engine_kwargs(engine_kwargs)
        one_worker = self.config.tensor_model_parallel_size * self.config.pipeline_model_parallel_size == 1
        if one_worker and os.environ.get("VLLM_CPU_OMP_THREADS_BIND") == "nobind":
            engine_kwargs.setdefault("distributed_executor_backend", "uni")
            # While this is 1, vLLM's CPU build changes uni to mp, to bind the worker's threads to cores from outside.
            os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"


class CPUReplica(PrivateReplica):
    """The vLLM replica, made of :class:`CPUHttpServer`."""

    server = CPUHttpServer
