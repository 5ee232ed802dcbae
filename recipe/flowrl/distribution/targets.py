"""The distribution at which an objective is stationary, by enumeration; (P, N) over P prompts and N answers, float64.

With delta the residual of :mod:`recipe.flowrl.objective`, it is where every delta is zero and the probabilities add up
to 1. A reward normalised within G rollouts is, given an answer, a mean over the others, which the policy draws: the
values that a right and a wrong answer then have depend on P(right), and the target is the one that reproduces its own.
"""

from collections.abc import Callable
from dataclasses import replace
from math import comb
from typing import Any

import torch

from recipe.flowrl.config import FlowRLConfig

_HALVINGS = 200


def tilted(reference: torch.Tensor, rewards: torch.Tensor, beta: float) -> tuple[torch.Tensor, torch.Tensor]:
    """pi_ref exp(beta r) / Z: (P, N) log-probabilities, and log Z (P,)."""
    unnormalised = reference + beta * rewards
    log_z = unnormalised.logsumexp(-1)
    return unnormalised - log_z.unsqueeze(-1), log_z


def tilted_by_length(
    reference: torch.Tensor, values: torch.Tensor, lengths: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """pi_ref exp(|y| (values - log Z)): (P, N) log-probabilities, and the log Z (P,) with which they add up to 1.

    Args:
        reference: (P, N) log pi_ref.
        values: (P, N) beta r.
        lengths: (N,) in tokens.
    """
    low, high = values.min(-1).values - 100, values.max(-1).values + 100
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        too_much = (reference + lengths * (values - middle.unsqueeze(-1))).logsumexp(-1) > 0
        low, high = torch.where(too_much, middle, low), torch.where(too_much, high, middle)
    log_z = (low + high) / 2
    return reference + lengths * (values - log_z.unsqueeze(-1)), log_z


def flowrl_target(
    config: FlowRLConfig,
    reference: torch.Tensor,
    rewards: torch.Tensor,
    lengths: torch.Tensor,
    normalised_over: int | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """FlowRL's target, and its log Z.

    Args:
        config: the objective. A constant log Z isn't free to be what it has to be: with it this is no fixed point.
        reference, rewards, lengths: (P, N), (P, N), (N,).
        normalised_over: rollouts within which the reward, 0 or 1, is normalised; None: it is as it is.

    Raises:
        ValueError: normalised rewards that aren't 0 or 1.
    """

    def of(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if config.length_normalization == "log_probs":
            return tilted_by_length(reference, config.beta * values, lengths)
        return tilted(reference, values, config.beta)

    return of(rewards) if normalised_over is None else _of_normalised(of, rewards, normalised_over)


def normalised_values(probability: torch.Tensor, rollouts: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The mean normalised reward of a right and of a wrong answer whose fellow rollouts are right with ``probability``.

    Both (P,), like ``probability``, for rewards of 0 and 1 and the sample's standard deviation, as verl takes it.
    """
    right, wrong = torch.zeros_like(probability), torch.zeros_like(probability)
    for others in range(rollouts):
        chance = comb(rollouts - 1, others) * probability**others * (1 - probability) ** (rollouts - 1 - others)
        right += chance * _normalised(1, others + 1, rollouts)
        wrong += chance * _normalised(0, others, rollouts)
    return right, wrong


def _normalised(reward: int, rights: int, rollouts: int) -> float:
    mean = rights / rollouts
    variance = rights * (1 - mean) / (rollouts - 1)
    return 0.0 if variance == 0 else (reward - mean) / (variance**0.5 + 1e-6)


def _of_normalised(
    of: Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]], rewards: torch.Tensor, rollouts: int
) -> tuple[torch.Tensor, torch.Tensor]:
    if not bool(((rewards == 0) | (rewards == 1)).all()):
        raise ValueError("the target of normalised rewards is known for rewards of 0 and 1 only")
    low, high = torch.zeros(len(rewards), dtype=torch.float64), torch.ones(len(rewards), dtype=torch.float64)
    for _ in range(60):
        probability = (low + high) / 2
        right, wrong = normalised_values(probability, rollouts)
        target, log_z = of(torch.where(rewards > 0, right.unsqueeze(-1), wrong.unsqueeze(-1)))
        more = (target.exp() * rewards).sum(-1) > probability
        low, high = torch.where(more, probability, low), torch.where(more, high, probability)
    return target, log_z


def target_of(config: Any, enumeration: Any) -> tuple[torch.Tensor, torch.Tensor] | None:
    """What a run's objective aims at, and its log Z (P,); None: at the best answers, whatever the reference says.

    Args:
        config: a run's, composed.
        enumeration: of its task.
    """
    reference, rewards, lengths = enumeration.reference_log_probs, enumeration.rewards, enumeration.lengths
    algorithm = config.algorithm
    objective = None
    if config.flowrl is not None:
        objective = FlowRLConfig.from_mapping(dict(config.flowrl))
    elif algorithm.kl_matched_beta is not None:
        objective = FlowRLConfig(beta=algorithm.kl_matched_beta, partition="group_mean")
    if objective is not None:
        rollouts = config.actor_rollout_ref.rollout.n
        if not _normalises(algorithm):
            return flowrl_target(objective, reference, rewards, lengths, None)
        if objective.partition == "group_mean":
            # The group's mean holds 1/G of an answer's own log-ratio, and of a normalised reward nothing.
            objective = replace(objective, beta=objective.beta * rollouts / (rollouts - 1))
        return flowrl_target(objective, reference, rewards, lengths, rollouts)
    if algorithm.use_kl_in_reward and algorithm.adv_estimator == "rloo":
        return tilted(reference, rewards, 1 / algorithm.kl_ctrl.kl_coef)
    return None


def _normalises(algorithm: Any) -> bool:
    return algorithm.adv_estimator == "grpo" and algorithm.norm_adv_by_std_in_grpo
