"""Reward for Countdown: 1 if the answer is an expression that uses every number once and reaches the target, else 0."""

from functools import lru_cache
from typing import Any

from recipe.flowrl.tasks.countdown import gym
from recipe.flowrl.tasks.countdown.data import SOURCE, Puzzle
from recipe.flowrl.tasks.countdown.expressions import leaves, parse, signed_text
from recipe.flowrl.tasks.puzzles import PuzzleTask


def compute_score(
    data_source: str, solution_str: str, ground_truth: str, extra_info: dict[str, Any] | None = None, **kwargs: Any
) -> dict[str, Any]:
    """Score one response; verl's reward function signature.

    The whole response, up to the first special token, has to be the expression. reasoning-gym's own scorer decides.
    It runs only on text that was parsed here and uses the given numbers, since it lets sympy evaluate what it is given:
    whatever a model writes costs below a millisecond.

    Args:
        data_source, extra_info, kwargs: not used.
        solution_str: the response; special tokens may still be in it.
        ground_truth: JSON object with ``numbers`` (list of int), ``target`` (int) and ``n_solutions`` (int).

    Returns:
        ``score`` and ``acc``: 1.0 or 0.0; ``solution``: the canonical form if right, else "" (so that different
        solutions of a puzzle can be counted); ``n_solutions``: how many exist.

    Raises:
        ValueError: ``ground_truth`` isn't what it should be. No response raises.
    """
    puzzle = _puzzle(ground_truth)
    answer = solution_str.split("<|", 1)[0].strip()
    parsed = parse(answer)
    right = parsed is not None and leaves(parsed[1]) == list(puzzle.numbers) and _is_right(answer, puzzle)
    return {
        "score": float(right),
        "acc": float(right),
        "solution": signed_text(parsed) if right else "",
        "n_solutions": puzzle.n_solutions,
    }


def _is_right(answer: str, puzzle: Puzzle) -> bool:
    # A wrong answer scores 0.05 or 0.01.
    return gym.countdown_score(answer, puzzle.numbers, puzzle.target) == 1.0


_puzzle = lru_cache(maxsize=65536)(Puzzle.from_ground_truth)

COUNTDOWN = PuzzleTask(SOURCE, Puzzle.from_ground_truth, compute_score)
"""The task."""
