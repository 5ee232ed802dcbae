"""The tables of an exact study: at the same accuracy, beside the baseline's runs of the same seed, at the end."""

import operator
from collections.abc import Sequence

import numpy as np

from recipe.flowrl.compare.frontiers import (
    EFFECTIVE,
    HELD_OUT_PASS,
    HELD_OUT_RIGHT,
    RIGHT,
    Run,
    Runs,
    along_training,
    at_accuracy,
    best_at_level,
    interval,
)
from recipe.flowrl.reporting.study_page import Section, Table

BASELINE = "grpo"
"""The algorithm whose accuracy sets the levels at which others are compared; where there is none, the first."""
OF_BASELINE = (0.7, 0.85, 0.95)
"""Shares of the baseline's final accuracy."""


def _baseline_of(runs: Runs) -> str:
    """The system that the others are compared with."""
    return BASELINE if BASELINE in runs else next(iter(runs))


def accuracy_levels(runs: Runs) -> dict[float, float]:
    """Accuracies on the training puzzles at which systems are compared, by their share of the baseline's last."""
    last = float(np.mean([points[-1]["train"]["1"]["right"] for points in runs[_baseline_of(runs)]]))
    return {share: share * last for share in OF_BASELINE}


def at_levels(runs: Runs) -> list[Section]:
    """A table for each accuracy."""
    return [
        Section(
            f"At {100 * level:.1f}% right on the training puzzles, {share:.0%} of {_baseline_of(runs)}'s last accuracy",
            "Along training: at T = 1, where that accuracy is first reached. Best: over all steps and temperatures. "
            "– : not reached.",
            table=Table(
                ["", "runs", "effective solutions", "held-out pass@64", "best effective", "best held-out pass@64"],
                [[system, str(len(of_seeds)), *_level_row(of_seeds, level)] for system, of_seeds in runs.items()],
            ),
        )
        for share, level in accuracy_levels(runs).items()
    ]


def _level_row(runs: Sequence[Run], level: float) -> list[str]:
    cells = []
    for choose in (at_accuracy, best_at_level):
        for worth, scale, form in ((EFFECTIVE, 1, "{:.2f}"), (HELD_OUT_PASS, 100, "{:.1f}%")):
            values = [scale * choose(points, RIGHT, worth, level) for points in runs]
            cells.append(_cell(values, form))
    return cells


def against_baseline(runs: Runs) -> list[Section]:
    """What each system has more than the baseline's run of the same seed, each stopped and sampled as is best.

    A table, or none where no other system has a seed of the baseline.
    """
    name = _baseline_of(runs)
    level = accuracy_levels(runs)[OF_BASELINE[-1]]
    held_out = OF_BASELINE[-1] * float(np.mean([along_training(run, HELD_OUT_RIGHT).max() for run in runs[name]]))
    columns = (
        (RIGHT, EFFECTIVE, level, operator.truediv, 1, "{:.2f}"),
        (RIGHT, HELD_OUT_PASS, level, operator.sub, 100, "{:+.1f}"),
        (HELD_OUT_RIGHT, HELD_OUT_PASS, held_out, operator.sub, 100, "{:+.1f}"),
    )
    best = {
        system: {
            run[0]["seed"]: np.array([best_at_level(run, by, worth, at) for by, worth, at, *_ in columns])
            for run in of_seeds
        }
        for system, of_seeds in runs.items()
    }
    theirs = best.pop(name)
    rows = []
    for system, ours in best.items():
        seeds = [seed for seed in ours if seed in theirs]
        cells = [
            _cell([scale * against(ours[seed][index], theirs[seed][index]) for seed in seeds], form)
            for index, (_, _, _, against, scale, form) in enumerate(columns)
        ]
        if seeds:
            rows.append([system, str(len(seeds)), *cells])
    header = ["", "pairs", "effective solutions, ×", "held-out pass@64, points", "pass@64 by held-out accuracy, points"]
    section = Section(
        f"Beside {name}'s runs of the same seed",
        f"The best over all steps and temperatures of both: at {100 * level:.1f}% right on the training puzzles, "
        f"{OF_BASELINE[-1]:.0%} of {name}'s last accuracy; in the last column at {100 * held_out:.1f}% right on the "
        f"held-out ones, {OF_BASELINE[-1]:.0%} of the highest that it has there along training.",
        table=Table(header, rows),
    )
    return [section] if rows else []


def _cell(values: Sequence[float], form: str) -> str:
    """The mean and its interval, or both of two values; how many runs it is of, where not all of them got there."""
    reached = [value for value in values if not np.isnan(value)]
    if not reached:
        return "–"
    mean, low, high = interval(reached)
    if len(reached) == 2:
        text = " and ".join(map(form.format, reached))
    else:
        text = form.format(mean) + ("" if np.isnan(low) else f" [{form.format(low)}, {form.format(high)}]")
    return text if len(reached) == len(values) else f"{text} ({len(reached)} of {len(values)} runs)"


def end_table(runs: Runs) -> Section:
    """The last evaluation of each run."""
    header = ["", "runs", "step", "right", "effective", "distinct in 64", "KL(·|right)", "held out: right", "pass@64"]
    header += ["effective", "length of right answers", "KL to base", "spelt otherwise", "updates clipped"]
    rows = []
    for name, of_seeds in runs.items():
        ends = [points[-1] for points in of_seeds]
        measures = (
            ([point["step"] for point in ends], "{:.0f}"),
            ([100 * point["train"]["1"]["right"] for point in ends], "{:.1f}%"),
            ([point["train"]["1"]["effective"] for point in ends], "{:.2f}"),
            ([point["train"]["1"]["distinct@64"] for point in ends], "{:.2f}"),
            ([point["train"]["1"]["kl_right"] for point in ends], "{:.2f}"),
            ([100 * point["held_out"]["1"]["right"] for point in ends], "{:.1f}%"),
            ([100 * point["held_out"]["1"]["pass@64"] for point in ends], "{:.1f}%"),
            ([point["held_out"]["1"]["effective"] for point in ends], "{:.2f}"),
            ([point["train"]["1"].get("length", np.nan) for point in ends], "{:.2f}"),
            ([point["training"].get("kl", np.nan) for point in ends], "{:.2f}"),
            ([100 * _outside(points) for points in of_seeds], "{:.2f}%"),
            ([100 * _clipped(points) for points in of_seeds], "{:.0f}%"),
        )
        rows.append([name, str(len(ends)), *(_cell(values, form) for values, form in measures)])
    return Section("At the end of each run", "T = 1.", table=Table(header, rows))


def _outside(points: Run) -> float:
    """The largest share of right answers, of all that were sampled, which the table doesn't hold."""
    sampled = [
        point[split]["sampled"] for point in points for split in ("train", "held_out") if "sampled" in point[split]
    ]
    return max((one["outside"] for one in sampled), default=float("nan"))


def _clipped(points: Run) -> float:
    found = [point["training"]["clipped"] for point in points if "clipped" in point["training"]]
    return float(np.mean(found)) if found else float("nan")
