"""Updates whose loss or gradient isn't finite: skipped, counted, and after too many in a row kept for a replay."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from tensordict import TensorDict
from verl.single_controller.base.decorator import Dispatch, make_nd_compute_dataproto_dispatch_fn, register
from verl.utils import tensordict_utils as tu
from verl.workers.config import TrainingWorkerConfig

from verl_ext import any_platform as any_platform  # verl as the workers need it
from verl_ext.faults import NonFiniteError
from verl_ext.files import replacing
from verl_ext.log_prob_variants import LogProbVariants
from verl_ext.on_policy import with_own_log_probs
from verl_ext.patches import patch_models
from verl_ext.reshard import ReshardingTrainingWorker
from verl_ext.snapshots import SnapshotWorker

STEP = "training_step"
"""Under this name a batch says which step it belongs to."""

SKIPPED = "skipped_update"
"""Metric of an update: 1.0 if it was skipped, else 0.0."""

CLIPPED = "clipped_update"
"""Metric of an update: 1.0 if the norm of its gradient was above the limit, else 0.0."""


@dataclass
class UpdateGuard:
    """Skips an update whose loss isn't finite, counts those that were skipped, and ends the run after too many.

    verl skips an update whose gradient isn't finite, on all ranks, since its norm is taken over all of them. So a loss
    that isn't finite is given a gradient that isn't either.

    Args:
        max_in_a_row: so many skipped updates in a row end the run.
        directory: where the batch of the last of them goes, for a replay.
    """

    max_in_a_row: int
    directory: str
    _in_a_row: int = 0
    _micro_batches: list[dict[str, Any]] = field(default_factory=list)

    def watch(self, loss_function: Callable) -> Callable:
        """``loss_function``, in the form in which verl's engine calls it, under this guard.

        verl calls that of a distillation for the logits too, without ``model_output``.
        """

        def watched(**arguments: Any) -> Any:
            if "model_output" not in arguments:
                return loss_function(**arguments)
            loss, metrics = loss_function(**arguments)
            if torch.is_grad_enabled():
                if self._in_a_row + 1 >= self.max_in_a_row:  # else nothing is to be kept in memory
                    self._micro_batches.append(_plain_micro_batch(arguments["model_output"], arguments["data"], loss))
                loss = loss * torch.where(torch.isfinite(loss.detach()), 1.0, math.nan)
            return loss, metrics

        return watched

    def update_ended(self, grad_norm: float, step: int, rank: int) -> bool:
        """Count an update. ``grad_norm``: over all ranks, as verl reports it.

        Returns:
            Whether it was skipped.

        Raises:
            NonFiniteError: it was the last of ``max_in_a_row`` skipped ones; the batch has been written.
        """
        skipped = not math.isfinite(grad_norm)
        self._in_a_row = self._in_a_row + 1 if skipped else 0
        micro_batches, self._micro_batches = self._micro_batches, []
        if self._in_a_row >= self.max_in_a_row:
            path = Path(self.directory) / f"step_{step}_rank_{rank}.pt"
            batch = {"step": step, "rank": rank, "grad_norm": grad_norm, "micro_batches": micro_batches}
            with replacing(path) as temporary:
                torch.save(batch, temporary)
            raise NonFiniteError(
                f"loss or gradient wasn't finite in {self._in_a_row} updates in a row, the last in step {step}; they "
                f"were skipped; the last one's batch is in {path}"
            )
        return skipped


class GuardedTrainingWorker(ReshardingTrainingWorker):
    """verl's training worker under an :class:`UpdateGuard`; adds the metrics :data:`SKIPPED` and :data:`CLIPPED`."""

    def __init__(self, config: TrainingWorkerConfig, *, guard: UpdateGuard) -> None:
        super().__init__(config)
        self._guard = guard

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def set_loss_fn(self, loss_fn: Callable) -> None:
        super().set_loss_fn(self._guard.watch(with_own_log_probs(loss_fn)))

    @register(dispatch_mode=make_nd_compute_dataproto_dispatch_fn(mesh_name="train"), blocking=False)
    def train_batch(self, data: TensorDict) -> TensorDict | None:
        """One update.

        Raises:
            NonFiniteError: see :class:`UpdateGuard`.
        """
        output = super().train_batch(data)
        if output is not None:  # else another rank of the same data speaks for this one
            metrics = tu.get(output, "metrics")
            skipped = self._guard.update_ended(metrics["grad_norm"], tu.get(data, STEP, default=0), self.rank)
            clipped = metrics["grad_norm"] > self.engine.optimizer_config.clip_grad
            tu.assign_non_tensor(output, metrics={**metrics, SKIPPED: float(skipped), CLIPPED: float(clipped)})
        return output


class GuardedWorker(LogProbVariants, SnapshotWorker):
    """verl's actor, rollout and reference worker with the actor under a guard.

    ``config.nonfinite`` holds the arguments of :class:`UpdateGuard`.
    """

    def __init__(self, config: DictConfig, *args: Any, **kwargs: Any) -> None:
        patch_models()
        super().__init__(config, *args, **kwargs)
        self.guard = UpdateGuard(**config.nonfinite)
        self.actor_worker_cls = partial(GuardedTrainingWorker, guard=self.guard)


def load_batch(path: Path) -> dict[str, Any]:
    """A batch that a guard has written, its micro-batches as ``data`` (TensorDict), ``model_output`` and ``loss``.

    Raises:
        OSError, RuntimeError, pickle.UnpicklingError: the file can't be read.
    """
    batch = torch.load(path, map_location="cpu", weights_only=True)
    for micro_batch in batch["micro_batches"]:
        tensors = {name: _unplain(value) for name, value in micro_batch["data"]["tensors"].items()}
        micro_batch["data"] = tu.get_tensordict(tensors, micro_batch["data"]["others"])
        micro_batch["model_output"] = {name: _unplain(v) for name, v in micro_batch["model_output"].items()}
    return batch


def _plain_micro_batch(model_output: dict, data: TensorDict, loss: torch.Tensor) -> dict[str, Any]:
    """What a loss is computed from, in types that ``torch.load`` reads without running code; the rest is left out."""
    tensors = {name: value for name, value in data.items() if isinstance(value, torch.Tensor)}
    others = {name: tu.get(data, name) for name in data.keys() if name not in tensors}
    return {
        "data": {
            "tensors": {name: _plain(value) for name, value in tensors.items()},
            "others": {name: v for name, v in others.items() if isinstance(v, int | float | str | bool | None)},
        },
        "model_output": {name: _plain(v) for name, v in model_output.items() if isinstance(v, torch.Tensor)},
        "loss": loss.detach().item(),
    }


def _plain(value: torch.Tensor) -> torch.Tensor | list[torch.Tensor]:
    """On the CPU; a jagged tensor as its rows."""
    value = value.detach().cpu()
    return [row.clone() for row in value.unbind()] if value.is_nested else value.clone()


def _unplain(value: torch.Tensor | list[torch.Tensor]) -> torch.Tensor:
    return torch.nested.as_nested_tensor(value, layout=torch.jagged) if isinstance(value, list) else value
