"""An update whose old log-probs were computed beforehand, and the same without them; see ``scenarios.py``."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from tensordict import TensorDict
from verl.protocol import DataProto
from verl.trainer.ppo.core_algos import POLICY_LOSS_REGISTRY
from verl.utils import tensordict_utils as tu
from verl.utils.debug.metrics import calculate_debug_metrics
from verl.utils.metric.utils import Metric
from verl.workers.config import FSDPActorConfig
from verl.workers.utils.losses import ppo_loss
from verl.workers.utils.padding import response_from_nested
from workers import captured_gradients, make_flowrl_worker, make_worker, to_batch

from verl_ext.nonfinite import GuardedTrainingWorker, UpdateGuard
from verl_ext.on_policy import metrics_of_the_update

OLD, ROLLOUT = "old_log_probs", "rollout_log_probs"


def on_policy(inputs: Any) -> dict[str, Any]:
    """Loss -> gradients, loss and metrics of both ways, ``computed`` and ``own``; nothing moves."""
    guard = UpdateGuard(5, str(inputs.directory / "nonfinite"))
    flowrl = make_flowrl_worker(inputs.qwen2)
    verls = make_worker(inputs.qwen2, partial(GuardedTrainingWorker, guard=guard))
    results = {"flowrl": _both(flowrl, inputs)}
    for name in POLICY_LOSS_REGISTRY:
        if name == "bypass_mode":  # its old log-probs are the rollout's
            continue
        config = FSDPActorConfig(
            strategy="fsdp2", rollout_n=1, ppo_micro_batch_size_per_gpu=8, use_kl_loss=True, use_dynamic_bsz=False
        )
        for option, value in {"loss_mode": name, "dro_beta": 1.0}.items():
            object.__setattr__(config.policy_loss, option, value)
        verls.set_loss_fn(partial(ppo_loss, config))
        results[name] = _both(verls, inputs)
    return results


def _both(worker: Any, inputs: Any) -> dict[str, Any]:
    batch = to_batch(worker, inputs.sequences, calculate_entropy=True, micro_batch_size_per_gpu=8)
    passed = worker.infer_batch(_inferred(batch))
    mask = batch["response_mask"]
    computed = response_from_nested(tu.get(passed, "log_probs"), mask)
    noisy = [row + 0.05 * torch.sin(torch.arange(len(row)) + len(row)) for row in computed.unbind()]
    rollout = torch.nested.as_nested_tensor(noisy, layout=torch.jagged)
    old = batch.copy()
    old[OLD], old[ROLLOUT] = computed, rollout
    own = batch.exclude(OLD)
    own[ROLLOUT] = rollout
    result = {"computed": _update(worker, old), "own": _update(worker, own)}
    padded = TensorDict({OLD: computed, ROLLOUT: rollout, "response_mask": mask}, [len(batch)]).to_padded_tensor()
    padded["responses"] = padded["response_mask"]
    result["verl's metrics"] = calculate_debug_metrics(DataProto(batch=padded))
    entropy = response_from_nested(tu.get(passed, "entropy"), mask).values()[mask.values().bool()]
    result["verl's metrics"]["actor/entropy"] = entropy.mean().item()
    return result


def _inferred(batch: TensorDict) -> TensorDict:
    batch = batch.copy()
    tu.assign_non_tensor(batch, compute_loss=False)
    return batch


def _update(worker: Any, batch: TensorDict) -> dict[str, Any]:
    torch.manual_seed(3)  # clip_cov draws the tokens that it clips
    with captured_gradients(worker) as gradients:
        output = worker.train_mini_batch(batch)
    told = tu.get(output, "metrics")
    metrics = {f"actor/{k}": float(v.aggregate() if isinstance(v, Metric) else v[0]) for k, v in told.items()}
    return {"gradients": gradients, "of the update": metrics_of_the_update(metrics), "metrics": metrics}
