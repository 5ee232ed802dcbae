"""Advantages and a policy loss that verl lacks, and the group estimate of log Z.

Shapes: B responses padded to T tokens; ``index`` names the prompt (the group) of each response.
"""

from collections.abc import Sequence
from math import comb, log1p, sqrt
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig
from verl.trainer.ppo.core_algos import agg_loss, register_adv_est, register_policy_loss

from recipe.flowrl.config import FlowRLConfig
from recipe.flowrl.objective import divisors

GROUP_LOG_Z = "group_log_z"
"""Column of a batch with :func:`group_log_z`, on every response token."""


@register_adv_est("raw_reward")
def raw_reward(
    token_level_rewards: torch.Tensor, response_mask: torch.Tensor, **kwargs: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """The reward itself on every response token: FlowRL without group normalisation (arXiv 2509.15207, Eq. 4).

    Args:
        token_level_rewards: (B, T); a response's reward is their sum.
        response_mask: (B, T).

    Returns:
        advantages and returns, both (B, T).
    """
    advantages = token_level_rewards.sum(-1, keepdim=True) * response_mask
    return advantages, advantages


@register_adv_est("maxrl")
def maxrl(
    token_level_rewards: torch.Tensor, response_mask: torch.Tensor, index: np.ndarray, **kwargs: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """MaxRL's advantage (r - mean) / mean over a prompt's rollouts, 0 where none is right (arXiv 2602.02710).

    Args:
        token_level_rewards: (B, T); a response's reward is their sum: 1 if it is right, 0 if not.
        response_mask: (B, T).
        index: (B,) prompt of each response.

    Returns:
        advantages and returns, both (B, T).

    Raises:
        ValueError: a negative reward, whose mean is no success rate.
    """
    reward = token_level_rewards.sum(-1)
    if (reward < 0).any():
        raise ValueError(
            f"algorithm.adv_estimator=maxrl: a reward of {reward.min():g}; it divides by the success rate, which takes "
            "rewards of 0 and 1: choose a reward function with those (reward=math_verify)"
        )
    mean = _group_mean(reward, torch.ones_like(reward), index)
    advantages = torch.where(mean > 0, reward / mean - 1, 0.0).unsqueeze(-1) * response_mask
    return advantages, advantages


@register_adv_est("pass_at_k")
def pass_at_k(
    token_level_rewards: torch.Tensor, response_mask: torch.Tensor, index: np.ndarray, config: DictConfig, **kwargs: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """Analytic advantage of pass@k (arXiv 2508.10751, section 2.4): each k of a prompt's rollouts are one attempt.

    A response is right where its reward is positive. With N rollouts, M of them wrong, an attempt has the mean reward
    R = 1 - C(M, k) / C(N, k) and the standard deviation sqrt(R (1 - R)). A right response gets (1 - R) / std, a wrong
    one the mean over the attempts that contain it, (1 - R - C(M - 1, k - 1) / C(N - 1, k - 1)) / std.

    Args:
        token_level_rewards: (B, T); a response's reward is their sum.
        response_mask: (B, T).
        index: (B,) prompt of each response.
        config: ``pass_k`` is k.

    Returns:
        advantages and returns, both (B, T).

    Raises:
        ValueError: a prompt has fewer than k rollouts.
    """
    k = config.pass_k
    right = token_level_rewards.sum(-1) > 0
    advantages = torch.zeros_like(token_level_rewards)
    for rows in _groups(index, right.device):
        n, wrong = len(rows), int((~right[rows]).sum())
        if n < k:
            raise ValueError(f"algorithm.pass_k={k}: a prompt has only {n} rollouts; lower it or raise rollout.n")
        mean = 1 - comb(wrong, k) / comb(n, k)
        deviation = sqrt(mean * (1 - mean))
        if deviation == 0:  # every attempt succeeds, or none
            continue
        of_right = (1 - mean) / deviation
        of_wrong = (1 - mean - comb(wrong - 1, k - 1) / comb(n - 1, k - 1)) / deviation if wrong else 0.0
        advantages[rows] = torch.where(right[rows], of_right, of_wrong).to(advantages).unsqueeze(-1)
    advantages = advantages * response_mask
    return advantages, advantages


def group_log_z(
    reward: torch.Tensor,
    ref_log_ratio: torch.Tensor,
    length: torch.Tensor,
    index: Sequence[str] | np.ndarray,
    config: FlowRLConfig,
) -> torch.Tensor:
    """The log Z with which the loss of a prompt's rollouts is least at pi_old, without gradient.

    A mean of beta r - log pi_old/pi_ref over the rollouts, in which each weighs as in the loss: alike, or by 1 / |y|^2
    where the whole residual is divided by |y| (1 / |y| where by its root). VarGrad's estimate (Richter et al., arXiv
    2010.10436; TBA, arXiv 2503.18929), at the policy that drew the rollouts: exact in the first update after a rollout,
    stale by a few updates in the later ones.

    Args:
        reward: (B,) r.
        ref_log_ratio: (B,) log pi_old/pi_ref of each response, the sum over its tokens.
        length: (B,) tokens of each response, at least 1.
        index: (B,) prompt of each response.
        config: the objective.

    Returns:
        (B,), equal within a group.
    """
    per_log_prob, per_residual = divisors(config, length)
    return _group_mean(config.beta * reward - ref_log_ratio / per_log_prob, per_residual**-2, index)


def target_log_odds(
    reward: torch.Tensor, length: torch.Tensor, index: Sequence[str] | np.ndarray, config: FlowRLConfig
) -> float | None:
    """Log of the odds that the best answer of a group gains over its worst in the target, as measured, in nats.

    The mean over the groups whose rewards differ of beta times that difference, and of the responses' length where the
    log-probs alone are divided by it. See :func:`recipe.flowrl.preflight.target.gain`.

    Args:
        reward: (B,) r, normalised if the run's is.
        length: (B,) tokens of each response.
        index: (B,) prompt of each response.
        config: the objective.

    Returns:
        None if the rewards differ in no group.
    """
    per_log_prob, _ = divisors(config, length)
    groups = [rows for rows in _groups(index, reward.device) if reward[rows].max() > reward[rows].min()]
    gains = [(reward[rows].max() - reward[rows].min()) * per_log_prob[rows].mean() for rows in groups]
    return config.beta * torch.stack(gains).mean().item() if gains else None


def kl_matched(
    advantages: torch.Tensor,
    ref_log_ratio: torch.Tensor,
    length: torch.Tensor,
    index: Sequence[str] | np.ndarray,
    beta: float,
) -> torch.Tensor:
    """GRPO's advantage with FlowRL's reference term: 2 (beta r_hat - log pi_old/pi_ref / |y|), centred in each group.

    With the loss :func:`sequence_weighted` its gradient is FlowRL's, in size too, so that clipping it does the same.
    What is left between the two: log Z is the group's mean, not the head's, and the reference term is taken at pi_old.

    Args:
        advantages: (B,) r_hat.
        ref_log_ratio: (B,) log pi_old/pi_ref of each response, the sum over its tokens.
        length: (B,) tokens of each response, at least 1.
        index: (B,) prompt of each response.
        beta: FlowRL's; the KL's coefficient is its inverse.

    Returns:
        (B,).
    """
    shaped = 2 * (beta * advantages - ref_log_ratio / length)
    return shaped - _group_mean(shaped, torch.ones_like(shaped), index)


def dmpo(
    advantages: torch.Tensor,
    reward: torch.Tensor,
    mean_log_prob: torch.Tensor,
    index: Sequence[str] | np.ndarray,
    weight: float,
    temperature: float,
) -> torch.Tensor:
    """GRPO's advantage and the gradient of DMPO's distance between two distributions over a group (arXiv 2605.19461).

    q is the softmax over a prompt's rollouts of their mean log-probs, p that of their rewards over ``temperature``; the
    distance is the mean of (q - p)^2. Its derivative by a rollout's mean log-prob, at pi_old, is subtracted from the
    rollout's advantage, ``weight`` times.

    Args:
        advantages: (B,) GRPO's.
        reward: (B,) as it is.
        mean_log_prob: (B,) token mean of log pi_old.
        index: (B,) prompt of each response.
        weight: of the distance, in the mean over prompts.
        temperature: of the rewards.

    Returns:
        (B,).
    """
    shaped = advantages.clone()
    for rows in _groups(index, advantages.device):
        q, p = mean_log_prob[rows].softmax(0), (reward[rows] / temperature).softmax(0)
        shaped[rows] -= weight * 2 * q * (q - p - (q * (q - p)).sum())
    return shaped


@register_policy_loss("sequence_weighted")
def sequence_weighted(
    old_log_prob: torch.Tensor,
    log_prob: torch.Tensor,
    advantages: torch.Tensor,
    response_mask: torch.Tensor,
    loss_agg_mode: str = "seq-mean-token-mean",
    config: Any = None,
    rollout_is_weights: torch.Tensor | None = None,
) -> tuple[torch.Tensor, dict[str, float]]:
    """REINFORCE with FlowRL's weight (arXiv 2509.15207, Eq. 7): -w A log pi, w = clip(pi/pi_old of the response).

    Args:
        old_log_prob, log_prob, advantages, response_mask: (B, T).
        loss_agg_mode: verl's.
        config: the actor's; ``clip_ratio_low`` and ``clip_ratio_high`` bound the ratio around 1.
        rollout_is_weights: (B, T) verl's correction for the rollout engine, if it is on.

    Returns:
        the loss, a scalar, and metrics.
    """
    log_ratio = torch.where(response_mask.bool(), log_prob.detach() - old_log_prob, 0.0).sum(-1, keepdim=True)
    low, high = log1p(-config.clip_ratio_low), log1p(config.clip_ratio_high)
    losses = -log_ratio.clamp(low, high).exp() * advantages * log_prob
    if rollout_is_weights is not None:
        losses = losses * rollout_is_weights
    loss = agg_loss(losses, response_mask, loss_agg_mode, **config.global_batch_info)
    clipped = (log_ratio < low) | (log_ratio > high)
    return loss, {"actor/pg_clipfrac": clipped.float().mean().item(), "actor/ppo_kl": -log_ratio.mean().item()}


def _group_mean(value: torch.Tensor, weight: torch.Tensor, index: Sequence[str] | np.ndarray) -> torch.Tensor:
    """(B,) the weighted mean of a row's group."""
    mean = torch.empty_like(value)
    for rows in _groups(index, value.device):
        mean[rows] = (weight[rows] * value[rows]).sum() / weight[rows].sum()
    return mean


def _groups(index: Sequence[str] | np.ndarray, device: torch.device) -> list[torch.Tensor]:
    """The rows of each prompt."""
    _, group = np.unique(np.asarray(index), return_inverse=True)
    return [torch.as_tensor(np.flatnonzero(group == number), device=device) for number in range(group.max() + 1)]
