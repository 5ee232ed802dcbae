"""Has verl use the rollout classes and patches of this package on any platform.

``verl_ext.nonfinite``, which defines the workers, imports it, so that it acts in the processes of the ranks, and in the
trainer's, which starts the rollout servers. ``verl_ext.cpu.register`` builds on it.
"""

from verl.workers.rollout import base as rollout_base
from verl.workers.rollout.replica import RolloutReplica, RolloutReplicaRegistry

from verl_ext.patches import patch_fused_forward, patch_fused_head_sharding


def _load_replica() -> type[RolloutReplica]:
    from verl_ext.rollout_server import PrivateReplica

    return PrivateReplica


RolloutReplicaRegistry.register("vllm", _load_replica)
rollout_base._ROLLOUT_REGISTRY[("vllm", "async")] = "verl_ext.rollout.BoundedServerAdapter"
patch_fused_head_sharding()
patch_fused_forward()
