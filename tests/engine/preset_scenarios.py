"""Gradients of verl's policy losses as the presets set them, in verl's engine."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from tiny import PRESETS
from verl.utils.config import omega_conf_to_dataclass
from verl.workers.utils.losses import ppo_loss
from workers import captured_gradients, make_worker, update

from recipe.flowrl import advantages  # noqa: F401  registers its loss
from recipe.flowrl.preflight.compose import compose_run
from verl_ext.nonfinite import GuardedTrainingWorker, UpdateGuard
from verl_ext.patches import patch_models

SIZES = (3, 8, 24)


def presets(inputs: Any) -> dict[str, dict[int, dict[str, Any]]]:
    """Algorithm -> size of a micro-batch -> gradients of the policy and metrics of one mini-batch. Nothing moves."""
    patch_models()
    guard = UpdateGuard(5, str(Path(inputs.directory) / "nonfinite"))
    worker = make_worker(inputs.qwen2, partial(GuardedTrainingWorker, guard=guard))
    results: dict[str, dict[int, dict[str, Any]]] = {}
    for algo in PRESETS:
        config = compose_run(["experiment=countdown_cpu", f"algo={algo}"])
        worker.set_loss_fn(partial(ppo_loss, config=omega_conf_to_dataclass(config.actor_rollout_ref.actor)))
        for size in SIZES:
            with captured_gradients(worker) as captured:
                metrics = update(worker, inputs.sequences, micro_batch_size_per_gpu=size)
            results.setdefault(algo, {})[size] = {"policy": captured["policy"], "metrics": metrics}
    return results
