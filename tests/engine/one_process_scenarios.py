"""A step of the one-process trainer, and the same updates by verl's workers; see ``scenarios.py``."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from tiny import Sequences
from torch import Tensor, nn
from verl.utils import tensordict_utils as tu
from verl.workers.utils.losses import ppo_loss
from verl.workers.utils.padding import response_from_nested
from workers import captured_gradients, make_flowrl_worker, make_worker, to_batch, update, whole

from recipe.flowrl.one_process.batch import Batch
from recipe.flowrl.one_process.task import Task
from recipe.flowrl.one_process.trainer import Trainer
from recipe.flowrl.preflight.compose import compose_run
from recipe.flowrl.worker import flowrl_worker_loss
from verl_ext.nonfinite import GuardedTrainingWorker, UpdateGuard

ALGORITHMS = ("flowrl", "flowrl_plus", "grpo", "grpo_kl_matched", "rloo")
CLIP_GRAD = 2.0
OVERRIDES = (
    f"actor_rollout_ref.actor.optim.clip_grad={CLIP_GRAD}",
    "data.train_batch_size=8",
    "actor_rollout_ref.actor.ppo_mini_batch_size=4",
    "actor_rollout_ref.rollout.n=4",
    "actor_rollout_ref.actor.optim.lr=1e-3",  # the second update shows what the first one did
    # Adam divides a gradient by its size, and so what is left of one that is zero but for rounding.
    "actor_rollout_ref.actor.optim.override_optimizer_config={eps: 1.0e-4}",
    "data.seed=0",  # the head's is the engine's and this, in one process
)


@dataclass(frozen=True)
class Drawn(Sequences):
    """Sequences with the group's log Z, zeros where the algorithm has none."""

    group_log_z: list[Tensor]


def one_process(inputs: Any) -> dict[str, dict[str, Any]]:
    """Algorithm -> two updates of one step on the same rollouts: the trainer's, ``ours``, and a worker's, ``verls``."""
    places, lengths = torch.arange(9), torch.arange(2, 10).unsqueeze(1)
    mask = (places >= 9 - lengths).long()  # prompts of 2 to 9 tokens, padded on the left
    ids = torch.where(mask.bool(), 20 * lengths + places, 0)
    task = Task(inputs.qwen2, ids, mask, 6, True, lambda prompt, answer: float((prompt + sum(answer)) % 3 == 0))
    return {algo: _step(algo, task, inputs) for algo in ALGORITHMS}


def _step(algo: str, task: Task, inputs: Any) -> dict[str, Any]:
    model = f"actor_rollout_ref.model.path={task.model_dir}"
    config = compose_run(["experiment=countdown_cpu", f"algo={algo}", model, *OVERRIDES])
    trainer = Trainer(config, task)
    torch.manual_seed(11)
    batch, _ = trainer._with_earlier(trainer._draw(config.data.train_batch_size))
    trainer._prepare(batch)
    worker = _worker(config, trainer, inputs)
    modules = _modules(trainer, worker)
    settings = {"temperature": trainer.temperature}
    told = {"start": _weights(modules), "log_probs": _log_probs(worker, batch, settings), "updates": []}
    for rows in torch.arange(len(batch)).split(len(batch) // 2):
        part = batch.rows(rows)
        with captured_gradients(worker) as gradients:
            metrics = update(worker, _drawn(part), **settings)
        ours = trainer._update(part)
        norms = {"ours": ours["grad_norm"], "verls": metrics["grad_norm"]}
        grads = {"ours": {name: _gradients(own) for name, (own, _) in modules.items()}, "verls": gradients}
        told["updates"].append({"norms": norms, "gradients": grads, "weights": _weights(modules)})
    return told | {"rewards": batch.reward}


def _worker(config: DictConfig, trainer: Trainer, inputs: Any) -> Any:
    """As the stack's worker makes it for a run of this configuration."""
    optim = OmegaConf.to_container(config.actor_rollout_ref.actor.optim)
    optim.pop("_target_")
    sizes = {"micro_batch_size_per_gpu": 4, "infer_micro_batch_size_per_gpu": 4}
    sections = {"optim": optim | {"total_training_steps": 10}, "engine": sizes}
    if trainer.head is not None:
        return make_flowrl_worker(inputs.qwen2, trainer.flowrl, **sections)
    guard = UpdateGuard(5, str(inputs.directory / "nonfinite"))
    worker = make_worker(inputs.qwen2, partial(GuardedTrainingWorker, guard=guard), **sections)
    verls = partial(ppo_loss, config=trainer.actor)
    worker.set_loss_fn(verls if trainer.flowrl is None else partial(flowrl_worker_loss, trainer.flowrl))
    return worker


def _modules(trainer: Trainer, worker: Any) -> dict[str, tuple[nn.Module, nn.Module]]:
    modules = {"policy": (trainer.policy, worker.engine.module)}
    return modules if trainer.head is None else modules | {"head": (trainer.head, worker.engine.auxiliary)}


def _weights(modules: dict[str, tuple[nn.Module, nn.Module]]) -> dict[str, dict[str, dict[str, Tensor]]]:
    return {
        side: {name: {key: whole(p) for key, p in both[place].named_parameters()} for name, both in modules.items()}
        for place, side in enumerate(("ours", "verls"))
    }


def _gradients(module: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in module.named_parameters()}


def _drawn(batch: Batch) -> Drawn:
    tokens, attention = batch.responses.rows, batch.responses.attention
    start, mask = batch.responses.prompt_length, batch.responses.response_mask

    def of_response(column: Tensor) -> list[Tensor]:
        return [row[kept] for row, kept in zip(column, mask, strict=True)]

    columns = {"group_log_z": torch.zeros(mask.shape)} | batch.columns
    return Drawn(
        prompts=[row[kept] for row, kept in zip(tokens[:, :start], attention[:, :start], strict=True)],
        responses=of_response(batch.responses.tokens),
        response_mask=of_response(mask.long()),
        **{name: of_response(columns[name]) for name in ("old_log_probs", "ref_log_prob", "advantages", "group_log_z")},
    )


def _log_probs(worker: Any, batch: Batch, settings: dict[str, Any]) -> dict[str, Tensor]:
    """Of this rank's rows before the updates, by the trainer and by the worker."""
    data = to_batch(worker, _drawn(batch), compute_loss=False, **settings)
    passed = response_from_nested(tu.get(worker.infer_batch(data), "log_probs"), data["response_mask"])
    return {"ours": data["old_log_probs"].values(), "verls": passed.values()}
