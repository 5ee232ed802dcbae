"""What an algorithm can trade: accuracy against diversity, along training and along the sampling temperature."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

Measure = tuple[str, str]
"""A split and the name of one of its measures."""
RIGHT: Measure = ("train", "right")
EFFECTIVE: Measure = ("train", "effective")
HELD_OUT_RIGHT: Measure = ("held_out", "right")
HELD_OUT_PASS: Measure = ("held_out", "pass@64")

Run = Sequence[Mapping[str, Any]]
"""The points of a run, in the order of their steps."""
Runs = Mapping[str, Sequence[Run]]
"""System -> its runs, one a seed."""


def along_training(points: Run, measure: Measure, temperature: str = "1") -> np.ndarray:
    """(len(points),) one measure of a run, step by step."""
    split, name = measure
    return np.array([point[split][temperature][name] for point in points])


def along_temperature(point: Mapping[str, Any], measure: Measure) -> np.ndarray:
    """(temperatures,) one measure of one point of a run, from the coldest to the hottest."""
    split, name = measure
    return np.array([point[split][temperature][name] for temperature in temperatures(point, split)])


def temperatures(point: Mapping[str, Any], split: str) -> list[str]:
    """At which the solutions were scored, ascending."""
    return sorted((name for name in point[split] if name != "sampled"), key=float)


def best_at(points: Run, accuracy: Measure, worth: Measure, levels: np.ndarray) -> np.ndarray:
    """The most that a run can have of ``worth`` at each accuracy, whenever it is stopped and however it is sampled.

    Args:
        points: of one run, in the order of their steps.
        accuracy, worth: two measures.
        levels: (M,) of accuracy.

    Returns:
        (M,): over all steps and temperatures, with straight lines between neighbouring temperatures of a step and
        between neighbouring steps at the same temperature; nan where no choice has that accuracy.
    """
    grid_accuracy = np.array([along_temperature(point, accuracy) for point in points])
    grid_worth = np.array([along_temperature(point, worth) for point in points])
    best = np.full(len(levels), np.nan)
    for lines in (zip(grid_accuracy, grid_worth, strict=True), zip(grid_accuracy.T, grid_worth.T, strict=True)):
        for xs, ys in lines:
            for x0, x1, y0, y1 in zip(xs, xs[1:], ys, ys[1:], strict=False):
                low, high = min(x0, x1), max(x0, x1)
                inside = (levels >= low) & (levels <= high)
                share = (levels[inside] - x0) / (x1 - x0) if x1 != x0 else np.zeros(int(inside.sum()))
                best[inside] = np.fmax(best[inside], y0 + share * (y1 - y0))
    return best


def best_at_level(points: Run, accuracy: Measure, worth: Measure, level: float) -> float:
    """:func:`best_at` at one accuracy."""
    return float(best_at(points, accuracy, worth, np.array([level]))[0])


def at_accuracy(points: Run, accuracy: Measure, worth: Measure, level: float) -> float:
    """``worth`` at temperature 1 where a run first reaches an accuracy, on a straight line between evaluations.

    nan where it never does.
    """
    xs, ys = along_training(points, accuracy), along_training(points, worth)
    for index in range(len(xs)):
        if xs[index] >= level:
            if index == 0:
                return float(ys[0])
            share = (level - xs[index - 1]) / (xs[index] - xs[index - 1])
            return float(ys[index - 1] + share * (ys[index] - ys[index - 1]))
    return float("nan")


def interval(values: Sequence[float]) -> tuple[float, float, float]:
    """The mean over runs and its 95% interval by Student's t; with one run the interval is nan."""
    from scipy.stats import t

    found = np.array([value for value in values if not np.isnan(value)])
    if not len(found):
        return (float("nan"),) * 3
    mean = float(found.mean())
    if len(found) == 1:
        return mean, float("nan"), float("nan")
    half = float(t.ppf(0.975, len(found) - 1) * found.std(ddof=1) / len(found) ** 0.5)
    return mean, mean - half, mean + half
