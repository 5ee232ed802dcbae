"""Reward for change: 1 if the answer is a row of the given coins that makes the amount, else 0."""

from functools import lru_cache
from typing import Any

from recipe.flowrl.tasks.change.data import SOURCE, Puzzle
from recipe.flowrl.tasks.puzzles import PuzzleTask


def compute_score(
    data_source: str, solution_str: str, ground_truth: str, extra_info: dict[str, Any] | None = None, **kwargs: Any
) -> dict[str, Any]:
    """Score one response; verl's reward function signature.

    Args:
        data_source, extra_info, kwargs: not used.
        solution_str: the response; special tokens may still be in it.
        ground_truth: JSON object with ``coins`` (list of int) and ``amount`` (int).

    Returns:
        ``score`` and ``acc``: 1.0 or 0.0; ``solution``: the answer if right, else ""; ``n_solutions``: how many there
        are.

    Raises:
        ValueError: ``ground_truth`` isn't what it should be. No response raises.
    """
    solutions = _solutions(ground_truth)
    answer = solution_str.split("<|", 1)[0]
    right = answer in solutions
    return {
        "score": float(right),
        "acc": float(right),
        "solution": answer if right else "",
        "n_solutions": len(solutions),
    }


@lru_cache(maxsize=65536)
def _solutions(ground_truth: str) -> frozenset[str]:
    return frozenset(Puzzle.from_ground_truth(ground_truth).solutions())


CHANGE = PuzzleTask(SOURCE, Puzzle.from_ground_truth, compute_score)
"""The task."""
