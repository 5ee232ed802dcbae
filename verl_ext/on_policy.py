"""Steps with a single update: its policy is the one before it, so that log-probs needn't be computed beforehand.

verl computes ``old_log_probs`` in a pass of its own before a step's updates. Where a step is one mini-batch, seen once,
they are the log-probs of the update itself, without their gradient.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf, open_dict
from tensordict import TensorDict
from verl.trainer.distillation import is_distillation_enabled
from verl.utils.metric import AggregationType, Metric
from verl.workers.utils.padding import response_from_nested

OLD = "old_log_probs"
_OF_BOTH = "rollout_probs/"
"""Prefix of the sums over tokens that are sent to the trainer."""


def uses_old_log_probs(config: DictConfig) -> bool:
    """Whether something beside the update reads the log-probs of the policy before it.

    That is a KL term in the reward, a correction of the rollout's distribution, an advantage that looks at
    probabilities, a router that is replayed, a distillation, and a trainer that updates beside its rollouts.
    """
    algorithm = config.algorithm
    correction = algorithm.get("rollout_correction") or {}  # verl's default, without any of these, only measures
    return bool(
        algorithm.use_kl_in_reward
        or any(correction.get(name) for name in ("rollout_is", "rollout_rs", "bypass_mode"))
        or "optimal_token_baseline" in str(algorithm.adv_estimator)
        or OmegaConf.select(config, "actor_rollout_ref.actor.router_replay.mode", default="disabled") != "disabled"
        or is_distillation_enabled(config.get("distillation"))
        or config.trainer.v1.trainer_mode == "separate_async"
    )


def one_update(config: DictConfig, rows: int) -> bool:
    """Whether a step of so many rows is one mini-batch, seen once."""
    actor, rollout = config.actor_rollout_ref.actor, config.actor_rollout_ref.rollout
    return actor.ppo_epochs == 1 and rows == actor.ppo_mini_batch_size * rollout.n


@contextmanager
def without_correction(config: DictConfig) -> Iterator[None]:
    """The run's configuration without the measurement of ``rollout_correction``, which reads old log-probs."""
    algorithm = config.algorithm
    kept = algorithm.get("rollout_correction")
    with open_dict(algorithm):
        algorithm.rollout_correction = None
    try:
        yield
    finally:
        with open_dict(algorithm):
            algorithm.rollout_correction = kept


def with_own_log_probs(loss_function: Callable) -> Callable:
    """``loss_function``, in the form in which verl's engine calls it, for batches that may lack ``old_log_probs``.

    They are then the update's own, detached. With the loss's metrics come those from which
    :func:`metrics_of_the_update` makes the ones that verl's pass would have told.
    """

    def complete(**arguments: Any) -> Any:
        output, data = arguments.get("model_output", {}), arguments["data"]
        if "log_probs" not in output or OLD in data:
            return loss_function(**arguments)
        data[OLD] = response_from_nested(output["log_probs"].detach(), data["response_mask"])
        loss, metrics = loss_function(**arguments)
        return loss, {**metrics, **_sums(output, data)}

    return complete


def _sums(output: dict[str, torch.Tensor], data: TensorDict) -> dict[str, Metric]:
    mask = data["response_mask"].values().bool()
    sums = {"tokens": mask.sum()}
    if "entropy" in output:
        entropy = response_from_nested(output["entropy"].detach(), data["response_mask"])
        sums["entropy"] = entropy.values()[mask].double().sum()
    told = {}
    if "rollout_log_probs" in data:
        actor, rollout = (data[name].values()[mask].double().exp() for name in (OLD, "rollout_log_probs"))
        difference = (actor - rollout).abs()
        sums |= {"d": difference.sum(), "dd": difference.square().sum(), "a": actor.sum(), "r": rollout.sum()}
        sums |= {"aa": actor.square().sum(), "rr": rollout.square().sum(), "ar": (actor * rollout).sum()}
        told["max"] = Metric(AggregationType.MAX, difference.max() if mask.any() else 0.0)
    # verl averages over ranks what is summed over micro-batches.
    told |= {name: Metric(AggregationType.SUM, value.item() * data["dp_size"]) for name, value in sums.items()}
    return {f"{_OF_BOTH}{name}": metric for name, metric in told.items()}


def metrics_of_the_update(metrics: dict[str, Any]) -> dict[str, float]:
    """The metrics of verl's pass for old log-probs, from the sums in an actor's ``metrics``, which are taken out of it.

    Returns:
        ``training/rollout_probs_diff_*`` and ``training/rollout_actor_probs_pearson_corr`` where the rollout told its
        log-probs; ``actor/entropy``, a mean over tokens, where the update computed entropies
        (``actor.calculate_entropy=true``). Empty after a step that had verl's pass.
    """
    prefix = f"actor/{_OF_BOTH}"
    sums = {name.removeprefix(prefix): metrics.pop(name) for name in [*metrics] if name.startswith(prefix)}
    n = sums.get("tokens")
    if not n:
        return {}
    told = {"actor/entropy": sums["entropy"] / n} if "entropy" in sums else {}
    if "max" in sums:
        variance = (sums["dd"] - sums["d"] ** 2 / n) / (n - 1) if n > 1 else math.nan
        spread = (n * sums["aa"] - sums["a"] ** 2) * (n * sums["rr"] - sums["r"] ** 2)
        together = n * sums["ar"] - sums["a"] * sums["r"]
        told |= {
            "training/rollout_probs_diff_valid": 1,
            "training/rollout_probs_diff_max": sums["max"],
            "training/rollout_probs_diff_mean": sums["d"] / n,
            "training/rollout_probs_diff_std": math.sqrt(max(variance, 0.0)),
            "training/rollout_actor_probs_pearson_corr": together / math.sqrt(spread) if spread > 0 else math.nan,
        }
    return told
