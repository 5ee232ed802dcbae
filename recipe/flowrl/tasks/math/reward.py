"""Reward for mathematics: is the response's final answer the right one?

Two rules. ``math_dapo`` is the one the paper trained with: a line ``Answer: ...`` among the last 300 characters, equal
as text after normalisation, worth +1 or -1. ``math_verify`` takes the answer in any of the usual forms
(:mod:`recipe.flowrl.tasks.math.answers`) and compares it exactly, worth 1 or 0: docs/rewards.md. Validation is graded
by the second whatever the training rule, so that a system isn't marked down for the format that it was trained on.
"""

import atexit
import json
from functools import lru_cache
from typing import Any

from recipe.flowrl.tasks.math.answers import final_answer, strip_delimiters
from recipe.flowrl.tasks.math.equivalence import decide
from recipe.flowrl.tasks.math.worker_pool import OverLimit, WorkerFailed, WorkerPool

RULES = ("math_verify", "math_dapo")

_DAPO_CHARACTERS = 300
"""The published rule looks at the end of the response only."""


def compute_score(
    data_source: str,
    solution_str: str,
    ground_truth: str,
    extra_info: dict[str, Any] | None = None,
    rule: str = "math_verify",
    validation_rule: str = "math_verify",
    workers: int = 2,
    limit_s: float = 5.0,
    **kwargs: Any,
) -> dict[str, float]:
    """Score one response; a reward function in verl's sense.

    Args:
        data_source: not looked at.
        solution_str: the response. Any text will do; none of it is evaluated in this process.
        ground_truth: the right answer in LaTeX or plain text; several values that are all wanted are separated by
            commas; a JSON list of strings names alternatives, any of which is right.
        extra_info: ``split`` ("train", else ``validation_rule`` applies); ``tolerance``: the largest absolute
            difference between numbers that count as equal.
        rule, validation_rule: ``math_verify`` or ``math_dapo``.
        workers: processes that compare, for each process that computes rewards.
        limit_s: seconds of CPU time for a comparison; one that takes longer counts as wrong.
        **kwargs: not looked at.

    Returns:
        ``score``; ``acc``: 1.0 if right, else 0.0; ``extraction_failed``: 1.0 if no answer was found;
        ``timed_out``: 1.0 if the answer takes more time or memory than a comparison has, which is wrong;
        ``grader_failed``: 1.0 if the comparison broke off, twice, for no reason that lies in the answer.

    Raises:
        ValueError: an unknown rule.
    """
    extra_info = extra_info or {}
    chosen = rule if extra_info.get("split", "train") == "train" else validation_rule
    if chosen not in RULES:
        raise ValueError(f"rule={chosen!r}: choose {' or '.join(RULES)}")
    if chosen == "math_dapo":
        return _dapo(solution_str, ground_truth)
    return _math_verify(solution_str, references(ground_truth), extra_info.get("tolerance"), workers, limit_s)


def same_answer(first: str, second: str, workers: int = 2, limit_s: float = 5.0) -> bool:
    """Whether two answers are the same; False where that takes longer than ``limit_s`` or can't be told.

    Args:
        first, second: as :func:`recipe.flowrl.tasks.math.answers.final_answer` returns them.
        workers, limit_s: as in :func:`compute_score`.
    """
    decided = decide(first, second)
    if decided is not None:
        return decided
    try:
        return _pool(workers, limit_s).ask({"references": [first], "answer": second})["equal"]
    except (OverLimit, WorkerFailed):
        return False


def references(ground_truth: str) -> list[str]:
    """The alternatives that ``ground_truth`` names: itself, or the items of a JSON list of strings."""
    if ground_truth.startswith('["'):
        try:
            items = json.loads(ground_truth)
        except ValueError:
            return [ground_truth]
        if isinstance(items, list) and all(isinstance(item, str) for item in items):
            return items
    return [ground_truth]


def _dapo(solution: str, ground_truth: str) -> dict[str, float]:
    from verl.utils.reward_score.math_dapo import is_correct_minerva  # imports all of verl, which runs this anyway

    right, answer = is_correct_minerva(solution[-_DAPO_CHARACTERS:], ground_truth)
    return _result(right, wrong_score=-1.0, extraction_failed=answer == "[INVALID]")


def _math_verify(
    solution: str, right_answers: list[str], tolerance: float | None, workers: int, limit_s: float
) -> dict[str, float]:
    answer = final_answer(solution)
    if answer is None:
        return _result(False, extraction_failed=True)
    decided = [decide(strip_delimiters(reference), answer, tolerance) for reference in right_answers]
    if True in decided or None not in decided:
        return _result(True in decided)
    try:
        request = {"references": right_answers, "answer": answer, "tolerance": tolerance}
        return _result(_pool(workers, limit_s).ask(request)["equal"])
    except OverLimit:
        return _result(False, timed_out=True)
    except WorkerFailed:
        return _result(False, grader_failed=True)


def _result(right: bool, wrong_score: float = 0.0, **flags: bool) -> dict[str, float]:
    names = ("extraction_failed", "timed_out", "grader_failed")
    score = 1.0 if right else wrong_score
    return {"score": score, "acc": float(right), **{name: float(flags.get(name, False)) for name in names}}


@lru_cache(maxsize=4)
def _pool(workers: int, limit_s: float) -> WorkerPool:
    pool = WorkerPool("recipe.flowrl.tasks.math.equivalence", workers, limit_s)
    atexit.register(pool.close)
    return pool
