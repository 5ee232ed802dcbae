"""Advantages of a batch, by verl's and the recipe's own functions, as the trainer of the stack computes them."""

import numpy as np
import torch
from omegaconf import DictConfig
from verl import DataProto
from verl.trainer.ppo.core_algos import FixedKLController
from verl.trainer.ppo.ray_trainer import apply_kl_penalty, compute_advantage

from recipe.flowrl.advantages import GROUP_LOG_Z, dmpo, group_log_z, kl_matched  # registers its estimators
from recipe.flowrl.config import FlowRLConfig
from recipe.flowrl.one_process.batch import Batch


def add(batch: Batch, algorithm: DictConfig, flowrl: FlowRLConfig | None, rollouts: int) -> None:
    """Put ``advantages``, ``returns`` and, where log Z is the group's, its column into ``batch``.

    Args:
        batch: with ``old_log_probs``, ``ref_log_prob`` and, for a critic, ``values``; group by group.
        algorithm: the section of the run's configuration.
        flowrl: the objective; None for verl's algorithms.
        rollouts: of each prompt.
    """
    tensors = batch.columns | {
        "response_mask": batch.mask,
        "token_level_scores": batch.scores,
        "token_level_rewards": batch.scores,
    }
    group = np.arange(len(batch)) // rollouts  # a prompt that comes twice is two groups, as in the stack
    data = DataProto.from_dict(tensors, non_tensors={"uid": group.astype(object)})
    if algorithm.use_kl_in_reward:
        data, _ = apply_kl_penalty(data, FixedKLController(algorithm.kl_ctrl.kl_coef), algorithm.kl_penalty)
    data = compute_advantage(
        data,
        algorithm.adv_estimator,
        algorithm.gamma,
        algorithm.lam,
        rollouts,
        algorithm.norm_adv_by_std_in_grpo,
        algorithm,
    )
    batch.columns |= {name: data.batch[name] for name in ("advantages", "returns")}
    mask, lengths = batch.mask, batch.mask.sum(-1)
    old_log_prob, ref_log_prob = ((batch.columns[name] * mask).sum(-1) for name in ("old_log_probs", "ref_log_prob"))
    advantage, log_ratio = batch.columns["advantages"][:, 0], old_log_prob - ref_log_prob
    if beta := algorithm.kl_matched_beta:
        _spread(batch, "advantages", kl_matched(advantage, log_ratio, lengths, group, beta))
    if weight := algorithm.dmpo_weight:
        temperature = algorithm.dmpo_temperature
        shaped = dmpo(advantage, batch.reward, old_log_prob / lengths, group, weight, temperature)
        _spread(batch, "advantages", shaped)
    if flowrl is not None and flowrl.partition == "group_mean":
        _spread(batch, GROUP_LOG_Z, group_log_z(advantage, log_ratio, lengths, group, flowrl))


def _spread(batch: Batch, column: str, row: torch.Tensor) -> None:
    batch.columns[column] = row.unsqueeze(-1) * batch.mask
