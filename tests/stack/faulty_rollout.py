"""A vLLM worker that goes wrong when new weights come: ``model.external_lib`` of a run, told how by ``FAULT``."""

import os
from typing import Any

from verl.workers.rollout.replica import RolloutReplica, RolloutReplicaRegistry

import verl_ext.cpu.register  # noqa: F401  (what this replaces one part of)

FAULT = "FLOWRL_TEST_FAULT"
"""Environment variable: ``stale``, the worker keeps a layer as it was from the second sync on; ``raise``, it raises."""


def _load_faulty_replica() -> type[RolloutReplica]:
    from verl_ext.cpu.rollout import CPUHttpServer, CPUReplica, CPUWorkerExtension

    class FaultyWorkerExtension(CPUWorkerExtension):
        syncs = 0

        def update_weights_from_ipc(self, *args: Any, **kwargs: Any) -> None:
            FaultyWorkerExtension.syncs += 1
            super().update_weights_from_ipc(*args, **kwargs)

        def _update_weights(self, weights: list, **kwargs: Any) -> None:
            if os.environ[FAULT] == "raise":
                raise IndexError("no such expert: 7")
            stale = FaultyWorkerExtension.syncs > 1
            super()._update_weights([(name, w) for name, w in weights if not (stale and ".0." in name)], **kwargs)

    globals()["FaultyWorkerExtension"] = FaultyWorkerExtension
    FaultyWorkerExtension.__qualname__ = "FaultyWorkerExtension"

    class FaultyHttpServer(CPUHttpServer):
        worker_extension = FaultyWorkerExtension

    class FaultyReplica(CPUReplica):
        server = FaultyHttpServer

    return FaultyReplica


def __getattr__(name: str) -> Any:
    """The vLLM worker's process asks for the class by name."""
    if name == "FaultyWorkerExtension":
        _load_faulty_replica()
        return globals()[name]
    raise AttributeError(name)


RolloutReplicaRegistry.register("vllm", _load_faulty_replica)
