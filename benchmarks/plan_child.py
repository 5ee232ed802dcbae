"""The measuring process of ``plan_memory``: what the CPU allocator gave to one update, beside what ``plan`` reckons.

The allocations are those that torch's profiler records, so temporaries inside an operation count, and what the
interpreter and its libraries hold doesn't.
"""

import gc
from typing import Any

import torch

from benchmarks.configuration import compose
from benchmarks.update_child import be_the_only_rank, overrides
from benchmarks.workload import Workload, make_batch

AS_ON_GPUS = [
    "actor_rollout_ref.actor.fsdp_config.mixed_precision.param_dtype=bf16",
    "actor_rollout_ref.actor.fsdp_config.mixed_precision.reduce_dtype=fp32",
    "actor_rollout_ref.model.use_remove_padding=true",
    "+actor_rollout_ref.actor.optim.override_optimizer_config.foreach=true",
]
"""``cluster=cpu`` trains in float32 on padded batches; PyTorch's AdamW takes all tensors at once on GPUs only."""


def measure(argument: dict[str, Any]) -> dict[str, Any]:
    """One case.

    Args:
        argument: ``workload``, its fields; ``model``, its directory; ``overrides`` of the configuration beside it.

    Returns:
        Bytes: ``measured``, the largest sum of parameters, optimizer and allocations during an update; ``planned``, by
        part, at the ``moment`` of an update that takes most; ``resident``, parameters and optimizer before it. And the
        ``tokens`` of the micro-batch.
    """
    be_the_only_rank()
    workload = Workload(**argument["workload"])
    tokens = make_batch(workload)["input_ids"].values().numel()
    one_micro_batch = [
        "actor_rollout_ref.actor.use_dynamic_bsz=true",
        f"actor_rollout_ref.actor.ppo_max_token_len_per_gpu={tokens}",
    ]
    config = compose(
        *overrides("flowrl", workload, argument["model"]), *AS_ON_GPUS, *one_micro_batch, *argument["overrides"]
    )
    worker = _worker(config)
    worker.update_actor(make_batch(workload))  # makes the optimizer's state, which a first step doesn't have yet
    resident = _resident_bytes(worker)
    moment, planned = _planned(config)
    return {
        "measured": resident + _peak_of_update(worker, workload),
        "resident": resident,
        "planned": planned,
        "moment": moment,
        "tokens": tokens,
    }


def _worker(config: Any) -> Any:
    from recipe.flowrl.worker import FlowRLWorker

    worker = FlowRLWorker(config.actor_rollout_ref, role="actor")
    worker.init_model()
    return worker


def _planned(config: Any) -> tuple[str, dict[str, float]]:
    from recipe.flowrl.common.gpus import GPUS
    from recipe.flowrl.plan.architecture import load_architecture, shape_of
    from recipe.flowrl.plan.memory import plan_memory

    shape = shape_of(load_architecture(config.actor_rollout_ref.model.path), config.flowrl)
    plan = plan_memory(config, shape, GPUS["h100_80gb"])
    return plan.worst_moment, plan.resident | plan.update[plan.worst_moment]


def _resident_bytes(worker: Any) -> int:
    engine = worker.actor.engine
    tensors = [*engine.module.parameters(), *engine.auxiliary.parameters()]
    for optimizer in (engine.optimizer, engine.auxiliary_optimizer):
        tensors += [value for state in optimizer.state.values() for value in state.values() if torch.is_tensor(value)]
    local = [getattr(tensor, "_local_tensor", tensor) for tensor in tensors]
    return sum(tensor.untyped_storage().nbytes() for tensor in local)


def _peak_of_update(worker: Any, workload: Workload) -> int:
    """Bytes: the most that an update has allocated and not yet freed."""
    batch = make_batch(workload)
    gc.collect()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        worker.update_actor(batch)
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak
