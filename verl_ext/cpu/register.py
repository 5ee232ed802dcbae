"""Registers the CPU engine and rollout classes with verl. Named by ``model.external_lib``, so each worker runs it."""

from verl.workers.rollout.replica import RolloutReplica, RolloutReplicaRegistry

from verl_ext import any_platform as any_platform  # first: one class that it registers is replaced here
from verl_ext.cpu import engine as engine  # registers the FSDP2 engine
from verl_ext.patches import patch_models


def _load_cpu_replica() -> type[RolloutReplica]:
    from verl_ext.cpu.rollout import CPUReplica

    return CPUReplica


RolloutReplicaRegistry.register("vllm", _load_cpu_replica)
patch_models()
