"""The measuring process of ``plan_memory``: what the CPU allocator gave to one update, beside what ``plan`` reckons.

The allocations are those that torch's profiler records, so temporaries inside an operation count, and what the
interpreter and its libraries hold doesn't.
"""

import gc
from collections.abc import Callable
from typing import Any

import torch
from verl.utils import tensordict_utils as tu

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
        Bytes, of the phases ``update`` and ``log-probs``: ``measured``, the largest sum of parameters, optimizer and
        allocations; ``planned``, by part, of an update at the ``moment`` that takes most. ``resident``: parameters and
        optimizer between them. And the ``tokens`` of the micro-batch.
    """
    be_the_only_rank()
    workload = Workload(**argument["workload"])
    tokens = make_batch(workload)["input_ids"].values().numel()
    one_micro_batch = [
        "actor_rollout_ref.actor.use_dynamic_bsz=true",
        f"actor_rollout_ref.actor.ppo_max_token_len_per_gpu={tokens}",
        f"actor_rollout_ref.rollout.log_prob_max_token_len_per_gpu={tokens}",
        f"actor_rollout_ref.ref.log_prob_max_token_len_per_gpu={tokens}",
    ]
    config = compose(
        *overrides("flowrl", workload, argument["model"]), *AS_ON_GPUS, *one_micro_batch, *argument["overrides"]
    )
    worker = _worker(config)
    worker.update_actor(make_batch(workload))  # makes the optimizer's state, which a first step doesn't have yet
    resident = _resident_bytes(worker)
    moment, planned = _planned(config)
    batch, read = make_batch(workload), tu.assign_non_tensor(make_batch(workload), compute_loss=False)
    return {
        "measured": {
            "update": resident + _peak_of(lambda: worker.update_actor(batch)),
            "log-probs": resident + _peak_of(lambda: worker.compute_log_prob(read)),
        },
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


def _planned(config: Any) -> tuple[str, dict[str, dict[str, float]]]:
    from recipe.flowrl.common.gpus import GPUS
    from recipe.flowrl.plan.architecture import load_architecture, shape_of
    from recipe.flowrl.plan.memory import plan_memory

    shape = shape_of(load_architecture(config.actor_rollout_ref.model.path), config.flowrl)
    plan = plan_memory(config, shape, GPUS["h100_80gb"])
    phases = {"update": plan.update[plan.worst_moment], "log-probs": plan.log_probs}
    return plan.worst_moment, {phase: plan.resident | parts for phase, parts in phases.items()}


def _resident_bytes(worker: Any) -> int:
    engine = worker.actor.engine
    tensors = [*engine.module.parameters(), *engine.auxiliary.parameters()]
    for optimizer in (engine.optimizer, engine.auxiliary_optimizer):
        tensors += [value for state in optimizer.state.values() for value in state.values() if torch.is_tensor(value)]
    local = [getattr(tensor, "_local_tensor", tensor) for tensor in tensors]
    return sum(tensor.untyped_storage().nbytes() for tensor in local)


def _peak_of(work: Callable[[], Any]) -> int:
    """Bytes: the most that ``work`` has allocated and not yet freed."""
    gc.collect()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        work()
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak
