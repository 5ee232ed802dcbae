"""What an evaluation found, as ``summary.json`` has it. Values are fractions in [0, 1]."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from recipe.flowrl.evaluate.codeforces_rating import rate
from recipe.flowrl.evaluate.metrics import Estimate, avg_at_n, majority, mean_over_problems, pass_at_each_k
from recipe.flowrl.evaluate.records import Record


def summarise(
    name: str,
    samples: Mapping[str, Sequence[Record]],
    grades: Mapping[str, Sequence[Record]],
    n: int,
    votes: bool,
    contests: Path | None = None,
) -> dict[str, Any]:
    """The numbers of one benchmark.

    Args:
        name: of the benchmark.
        samples, grades: the records of each problem, for the same problems.
        n: samples of each.
        votes: whether there is a majority to speak of: not of programs.
        contests: directory of Codeforces standings, if there is one.
    """
    correct = {problem: [record["correct"] for record in records] for problem, records in grades.items()}
    counts = {problem: sum(row) for problem, row in correct.items()}
    right = np.array(list(counts.values()))
    result = {
        "problems": len(counts),
        "n": n,
        "avg_at_n": _with_error(avg_at_n(right, n)),
        "pass_at_k": {str(k): _with_interval(estimate) for k, estimate in pass_at_each_k(right, n).items()},
        "maj_at_n": _majority(grades) if votes else None,
        "per_problem_correct": counts,
    }
    means = {
        "extraction_failed": _means(grades, lambda record: not record["extracted"]),
        "truncated": _means(samples, lambda record: record["finish_reason"] == "length"),
        "timed_out": _means(grades, lambda record: record["timed_out"]),
        "grader_failed": _means(grades, lambda record: record["grader_failed"]),
        "mean_tokens": _means(samples, lambda record: record["tokens"]),
    }
    result |= {name: estimate.value for name, estimate in means.items()}
    result["intervals"] = {name: [estimate.low, estimate.high] for name, estimate in means.items()}
    if name == "codeforces":
        result |= rate({problem: records[0]["prompt"] for problem, records in samples.items()}, correct, contests)
    return result


def _majority(grades: Mapping[str, Sequence[Record]]) -> dict[str, Any]:
    outcomes = [
        majority([record["group"] for record in records], [record["correct"] for record in records])
        for records in grades.values()
    ]
    tied = sum(is_tied for _, is_tied in outcomes) / len(outcomes)
    return _with_interval(mean_over_problems(np.array([value for value, _ in outcomes]))) | {"tied": tied}


def _means(records: Mapping[str, Sequence[Record]], of: Callable[[Record], float]) -> Estimate:
    return mean_over_problems(np.array([np.mean([of(record) for record in row]) for row in records.values()]))


def _with_interval(estimate: Estimate) -> dict[str, Any]:
    return {"value": estimate.value, "interval": [estimate.low, estimate.high]}


def _with_error(estimate: Estimate) -> dict[str, Any]:
    return _with_interval(estimate) | {"stderr": None if math.isnan(estimate.stderr) else estimate.stderr}
