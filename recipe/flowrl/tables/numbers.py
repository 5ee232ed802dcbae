"""The numbers in a table's cells: values with intervals, means over benchmarks, paired differences."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from recipe.flowrl.common.statistics import RESAMPLES, pass_at_k

TITLES = {
    "aime2024": "AIME24",
    "aime2025": "AIME25",
    "amc23": "AMC23",
    "math500": "MATH-500",
    "minerva": "Minerva",
    "olympiadbench": "Olympiad",
    "livecodebench": "LiveCodeBench",
    "codeforces": "Codeforces",
    "humanevalplus": "HumanEval+",
    "gsm8k": "GSM8K",
    "countdown": "Countdown",
}


@dataclass(frozen=True)
class Cell:
    """A value with its 95% interval; both None: missing. A published value has no interval."""

    value: float | None = None
    low: float | None = None
    high: float | None = None

    def minus(self, published: "Cell") -> "Cell":
        """The difference to a figure without an interval; missing if either is."""
        if self.value is None or published.value is None:
            return Cell()
        shifted = [None if end is None else end - published.value for end in (self.low, self.high)]
        return Cell(self.value - published.value, *shifted)


MISSING = Cell()


def column_title(column: str, n: int | None) -> str:
    """``aime2024`` -> ``AIME24 Avg@16``; ``livecodebench:pass@16`` -> ``LiveCodeBench Pass@16``."""
    benchmark, _, measure = column.partition(":")
    title = TITLES.get(benchmark, benchmark)
    if not measure:
        return f"{title} Avg@{n}" if n else title
    return f"{title} {measure.capitalize() if measure.startswith('pass') else measure}"


def cell(benchmarks: Mapping[str, Mapping[str, Any]], column: str) -> Cell:
    """The cell of ``column`` in a summary's ``benchmarks``, in percent but for ratings."""
    benchmark, _, measure = column.partition(":")
    summary = benchmarks.get(benchmark)
    if summary is None:
        return MISSING
    if measure == "rating":
        return Cell(summary.get("rating"), *(summary.get("rating_interval") or (None, None)))
    if measure == "percentile":
        share = summary.get("percentile")
        return MISSING if share is None else Cell(100 * share)
    estimate = summary["pass_at_k"].get(measure.removeprefix("pass@")) if measure else summary["avg_at_n"]
    if estimate is None:
        return MISSING
    return Cell(*(100 * number for number in (estimate["value"], *estimate["interval"])))


def per_problem(benchmarks: Mapping[str, Mapping[str, Any]], column: str) -> dict[str, float] | None:
    """Problem -> value in percent; None where the column isn't a mean over problems, or is missing."""
    benchmark, _, measure = column.partition(":")
    summary = benchmarks.get(benchmark)
    if summary is None or measure in ("rating", "percentile"):
        return None
    correct, n = summary["per_problem_correct"], summary["n"]
    k = int(measure.removeprefix("pass@")) if measure else 1
    if k > n:
        return None
    return dict(zip(correct, (100 * pass_at_k(np.array(list(correct.values())), n, k)).tolist(), strict=True))


def mean_over_columns(columns: Sequence[Sequence[float]], seed: int = 0) -> Cell:
    """The mean of the columns' means, with a bootstrap interval that resamples the problems of each column.

    With one column it is the mean over its problems. Paired differences go in as they are.
    """
    rng = np.random.default_rng(seed)
    drawn = np.zeros(RESAMPLES)
    for column in columns:
        values = np.asarray(column, dtype=float)
        counts = rng.multinomial(len(values), np.full(len(values), 1 / len(values)), size=RESAMPLES)
        drawn += counts @ values / len(values) / len(columns)
    low, high = np.quantile(drawn, [0.025, 0.975])
    return Cell(float(np.mean([np.mean(column) for column in columns])), float(low), float(high))


def paired(first: Mapping[str, float] | None, second: Mapping[str, float] | None) -> list[float]:
    """first - second on the problems that both have."""
    return [first[problem] - second[problem] for problem in first if problem in second] if first and second else []
