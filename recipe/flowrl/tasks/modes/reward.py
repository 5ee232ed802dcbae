"""Reward of the distribution task: the height of the mode that the answer is, or is next to."""

import json
from functools import lru_cache
from typing import Any

from recipe.flowrl.tasks.modes.data import Modes


def compute_score(
    data_source: str, solution_str: str, ground_truth: str, extra_info: dict[str, Any] | None = None, **kwargs: Any
) -> dict[str, Any]:
    """Score one response; verl's reward function signature.

    Args:
        data_source, extra_info, kwargs: not used.
        solution_str: the response without its special tokens, which make it too short to have a reward.
        ground_truth: JSON object, mode -> reward.

    Returns:
        ``score``, in [0, 1]; ``acc``, whether it is one of the modes; ``solution``, which one, else "";
        ``n_solutions``, how many there are.

    Raises:
        ValueError: ``ground_truth`` isn't JSON.
    """
    modes = _modes(ground_truth)
    hit = solution_str in modes.heights
    return {
        "score": modes.reward(solution_str),
        "acc": float(hit),
        "solution": solution_str if hit else "",
        "n_solutions": len(modes.heights),
    }


@lru_cache(maxsize=1024)
def _modes(ground_truth: str) -> Modes:
    return Modes(json.loads(ground_truth))
