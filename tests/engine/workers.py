"""Real training workers on this process's rank, their data, and what can be seen of an update."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDict
from tiny import TEMPERATURE, Sequences
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from verl.trainer.config import CheckpointConfig
from verl.utils import tensordict_utils as tu
from verl.utils.metric.utils import Metric
from verl.workers.config import ActorConfig, FSDPEngineConfig, FSDPOptimizerConfig, HFModelConfig, TrainingWorkerConfig
from verl.workers.engine_workers import TrainingWorker

from recipe.flowrl.config import FlowRLConfig
from recipe.flowrl.worker import FlowRLTrainingWorker, flowrl_worker_loss
from verl_ext.nonfinite import UpdateGuard

NO_CLIP = 1e9


def make_worker(
    directory: Path,
    build: Callable[[TrainingWorkerConfig], Any],
    *,
    model_type: str = "language_model",
    model: dict[str, Any] | None = None,
    engine: dict[str, Any] | None = None,
    optim: dict[str, Any] | None = None,
    checkpoint: dict[str, Any] | None = None,
) -> Any:
    """An initialised worker in float32 whose model, unless ``optim`` says otherwise, stays where it is."""
    config = TrainingWorkerConfig(
        model_type=model_type,
        model_config=HFModelConfig(
            path=str(directory),
            external_lib="verl_ext.cpu.register",
            **{
                "override_config": {"attn_implementation": "sdpa"},
                "enable_gradient_checkpointing": False,
                **(model or {}),
            },
        ),
        engine_config=FSDPEngineConfig(
            **{
                "strategy": "fsdp2",
                "use_torch_compile": False,
                "mixed_precision": {"param_dtype": "fp32", "reduce_dtype": "fp32"},
                "use_dynamic_bsz": False,
                "micro_batch_size_per_gpu": 12,
                "infer_micro_batch_size_per_gpu": 12,
                **(engine or {}),
            },
        ),
        optimizer_config=FSDPOptimizerConfig(
            **{"lr": 0.0, "weight_decay": 0.0, "clip_grad": NO_CLIP, "total_training_steps": 10, **(optim or {})}
        ),
        checkpoint_config=CheckpointConfig(**(checkpoint or {})),
    )
    worker = build(config)
    worker.reset()
    return worker


def make_flowrl_worker(
    directory: Path, flowrl: FlowRLConfig | None = None, *, guard: UpdateGuard | None = None, **sections: Any
) -> FlowRLTrainingWorker:
    """The same, of FlowRL's; its head, unless ``flowrl`` says otherwise, stays where it is as well."""
    flowrl = flowrl or FlowRLConfig(partition_lr=0.0)
    guard = guard or UpdateGuard(5, str(directory / "nonfinite"))
    worker = make_worker(directory, partial(FlowRLTrainingWorker, flowrl=flowrl, guard=guard), **sections)
    actor = ActorConfig(
        strategy="fsdp2", rollout_n=1, ppo_micro_batch_size_per_gpu=1, loss_agg_mode="seq-mean-token-mean"
    )
    worker.set_loss_fn(partial(flowrl_worker_loss, flowrl, actor=actor))
    return worker


def to_batch(worker: TrainingWorker, sequences: Sequences, **settings: Any) -> TensorDict:
    """This rank's share of ``sequences``, as verl's V1 trainer dispatches it to ``update_actor``; one mini-batch."""
    rank, rows = worker.engine.get_data_parallel_rank(), len(sequences)
    share = rows // worker.engine.get_data_parallel_size()
    local = sequences[rank * share : (rank + 1) * share]
    tokens = [torch.cat(pair) for pair in zip(local.prompts, local.responses, strict=True)]
    columns = {field.name: getattr(local, field.name) for field in dataclasses.fields(local)}
    columns |= {
        "input_ids": tokens,
        "position_ids": [torch.arange(len(row)) for row in tokens],
        "loss_mask": local.response_mask,
        "values": local.old_log_probs,  # of a critic; any numbers do
        "returns": local.ref_log_prob,
    }
    return tu.get_tensordict(
        {name: torch.nested.as_nested_tensor(rows, layout=torch.jagged) for name, rows in columns.items()},
        non_tensor_dict={
            "calculate_entropy": False,
            "distillation_use_topk": False,
            "distillation_only": False,
            "global_batch_size": rows,
            "mini_batch_size": rows,
            "epochs": 1,
            "seed": 42,
            "dataloader_kwargs": {"shuffle": False},
            "temperature": TEMPERATURE,
            **settings,
        },
    )


def update(worker: TrainingWorker, sequences: Sequences, **settings: Any) -> dict[str, float]:
    """One call of verl's ``update_actor``; metrics of its first mini-batch, over all ranks, as the driver gets them."""
    output = worker.train_mini_batch(to_batch(worker, sequences, **settings))
    metrics = tu.get(output, "metrics") if worker.engine.is_mp_src_rank_with_outputs() else {}
    return {
        name: float(value.aggregate() if isinstance(value, Metric) else value[0])
        for name, value in metrics.items()
        if not name.startswith("perf/")
    }


@contextmanager
def captured_gradients(worker: TrainingWorker) -> Iterator[dict[str, dict[str, Tensor]]]:
    """Gradients, whole, as each optimizer finds them in its step: ``{"policy": {name: grad}, "head": {...}}``."""
    engine, captured = worker.engine, {}

    def capture(key: str, module: nn.Module) -> Any:
        def hook(*_: Any) -> None:
            captured[key] = {name: whole(p.grad) for name, p in module.named_parameters() if p.grad is not None}

        return hook

    handles = [engine.optimizer.register_step_pre_hook(capture("policy", engine.module))]
    if hasattr(engine, "auxiliary"):
        handles.append(engine.auxiliary_optimizer.register_step_pre_hook(capture("head", engine.auxiliary)))
    try:
        yield captured
    finally:
        for handle in handles:
            handle.remove()


def whole(tensor: Tensor) -> Tensor:
    """A copy of a tensor that FSDP may have sharded. Collective."""
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach().clone()


def state_of(worker: FlowRLTrainingWorker) -> dict[str, Any]:
    """Weights, both optimizers' entries, learning rates and schedules, whole. Collective."""
    engine = worker.engine
    pairs = (engine.optimizer, engine.lr_scheduler), (engine.auxiliary_optimizer, engine.auxiliary_lr_scheduler)
    moments = [
        [{name: whole(value) for name, value in optimizer.state[p].items()} for p in group["params"]]
        for optimizer, _ in pairs
        for group in optimizer.param_groups
    ]
    rates = [(optimizer.param_groups[0]["lr"], scheduler.state_dict()) for optimizer, scheduler in pairs]
    return {"parameters": parameters_of(worker), "moments": moments, "rates": rates}


def parameters_of(worker: FlowRLTrainingWorker) -> dict[str, dict[str, Tensor]]:
    """Weights, whole: ``{"policy": {name: tensor}, "head": {...}}``. Collective."""
    modules = {"policy": worker.engine.module, "head": worker.engine.auxiliary}
    return {key: {name: whole(p) for name, p in module.named_parameters()} for key, module in modules.items()}
