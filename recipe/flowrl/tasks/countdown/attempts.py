"""Reward for Countdown with a calculator: that of the first right attempt."""

import re
from typing import Any

from recipe.flowrl.tasks.countdown import reward

_NEXT_TURN = re.compile(r"\n(?:<\|im_start\|>)?assistant\n")


def compute_score(
    data_source: str, solution_str: str, ground_truth: str, extra_info: dict[str, Any] | None = None, **kwargs: Any
) -> dict[str, Any]:
    """Score a conversation; verl's reward function signature.

    Args:
        data_source, extra_info, kwargs: not used.
        solution_str: the model's turns, ChatML, the calculator's between them; special tokens may be left out.
        ground_truth: as for :func:`recipe.flowrl.tasks.countdown.reward.compute_score`.

    Returns:
        What that function says of the first right attempt, or of the last one; ``attempts``: how many there are.

    Raises:
        ValueError: ``ground_truth`` isn't what it should be. No response raises.
    """
    attempts = [turn.split("\n", 1)[0] for turn in _NEXT_TURN.split(solution_str)]
    scores = [reward.compute_score(data_source, attempt, ground_truth) for attempt in attempts]
    return next((score for score in scores if score["acc"]), scores[-1]) | {"attempts": float(len(attempts))}
