"""How sharp FlowRL's target is, and at which beta it could be seen in the policy. Standard library only.

For rewards of 0 and 1 the target gives each right answer exp(gain) times the odds that the reference gives it over a
wrong one, and leaves the reference's proportions among the right ones (but for lengths, see below)::

    length_normalization  raw reward   reward normalised in groups of G rollouts
    log_probs             |y| beta     |y| beta D_G(p)
    the others            beta         beta D_G(p)

D_G(p), :func:`advantage_gap`, is the mean difference of the normalised rewards of a right and a wrong answer at the
success rate p, 1.74 to 2.48 for G = 8. The first row holds where all answers have |y| tokens; where they differ, longer
right answers gain more. tests/unit/algorithm/test_fixed_points.py derives each entry from the loss.
"""

from __future__ import annotations

from math import comb, exp, log, sqrt

from recipe.flowrl.config import SATURATED, FlowRLConfig

SHARP = 5.0
"""Nats. What is advised instead: it takes a success rate of 20% to 97%."""

_TYPICAL_RATE = 0.5
"""Of success, for D_G where it isn't known: D_G is flat around it."""


def advantage_gap(success_rate: float, rollouts: int) -> float:
    """D_G(p): expected (r - mean) / std of a right answer minus that of a wrong one, over the group's other answers.

    Args:
        success_rate: p in [0, 1], of each answer of the group, independently.
        rollouts: G, at least 2; std is the unbiased one, and a group of equal rewards has normalised rewards of 0.
    """
    gap, p = 0.0, success_rate
    for others in range(rollouts):
        probability = comb(rollouts - 1, others) * p**others * (1 - p) ** (rollouts - 1 - others)
        right = _normalised(others + 1, rollouts)[0]
        wrong = _normalised(others, rollouts)[1]
        gap += probability * (right - wrong)
    return gap


def _normalised(right: int, rollouts: int) -> tuple[float, float]:
    """The normalised reward of a right and of a wrong answer where ``right`` of a group are right."""
    if right in (0, rollouts):
        return 0.0, 0.0
    mean = right / rollouts
    deviation = sqrt(rollouts * mean * (1 - mean) / (rollouts - 1))
    return (1 - mean) / deviation, -mean / deviation


def gain(
    config: FlowRLConfig, normalised: bool, rollouts: int, length: float, success_rate: float = _TYPICAL_RATE
) -> float:
    """Log of the odds, in nats, that a right answer gains over a wrong one in the target; see above.

    Args:
        config: the objective.
        normalised: whether rewards are normalised in groups.
        rollouts: of a group.
        length: tokens of an answer; used where the log-probs alone are divided by it.
        success_rate: of the policy; used where rewards are normalised.
    """
    times = length if config.length_normalization == "log_probs" else 1.0
    if normalised:
        times *= advantage_gap(success_rate, rollouts)
        if config.partition == "group_mean":  # an answer is in the mean that is subtracted from its own residual
            times *= rollouts / (rollouts - 1)
    return times * config.beta


def success_rate(before: float, config: FlowRLConfig, normalised: bool, rollouts: int, length: float) -> float:
    """The target's success rate where the reference's is ``before``: it solves logit p = logit before + gain(p)."""
    low, high = 0.0, 1.0
    for _ in range(100):
        p = (low + high) / 2
        reached = _logistic(log(before / (1 - before)) + gain(config, normalised, rollouts, length, p))
        low, high = (p, high) if reached > p else (low, p)
    return (low + high) / 2


def saturation(config: FlowRLConfig, normalised: bool, rollouts: int, longest: int) -> str | None:
    """One line if the target is saturated for answers of up to ``longest`` tokens, with a beta at which it isn't."""
    if rollouts < 2:
        return None
    sharpness = gain(config, normalised, rollouts, longest)
    if sharpness <= SATURATED:
        return None
    advised = config.beta * SHARP / sharpness
    if config.length_normalization != "log_probs":
        return (
            f"flowrl.beta={config.beta:g}: the target is saturated: a right answer gains odds of e^{sharpness:.0f} "
            "over a wrong one, so that the policy ends where a reward maximiser's does; "
            f"beta={advised:.2g} wouldn't be (docs/choosing_beta.md)"
        )
    tokens = SATURATED / gain(config, normalised, rollouts, 1.0)
    return (
        f"flowrl.beta={config.beta:g}: the target is saturated for answers of more than {tokens:.2g} tokens: at "
        f"data.max_response_length={longest} a right one gains odds of e^{sharpness:.3g} over a wrong one, so that the "
        f"policy ends where a reward maximiser's does; beta={advised:.2g} wouldn't be (docs/choosing_beta.md)"
    )


def _logistic(x: float) -> float:
    return 1 / (1 + exp(-x)) if x > -700 else 0.0
