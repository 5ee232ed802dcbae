"""The report of an exact study: accuracy against diversity at every step and every sampling temperature."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from recipe.flowrl.common.errors import UserError
from recipe.flowrl.common.foreign import read_text
from recipe.flowrl.common.jsonl import JsonLines
from recipe.flowrl.compare.frontiers import (
    Measure,
    along_temperature,
    along_training,
    at_accuracy,
    best_at,
    best_at_level,
    interval,
)
from recipe.flowrl.reporting.study_page import Section, Table, svg, write_page

BASELINE = "grpo"
"""The algorithm whose accuracy sets the levels at which others are compared."""
OF_BASELINE = (0.8, 0.9, 0.95)
"""Shares of the baseline's final accuracy."""

_RIGHT: Measure = ("train", "right")
_EFFECTIVE: Measure = ("train", "effective")
_HELD_OUT_RIGHT: Measure = ("held_out", "right")
_HELD_OUT_PASS: Measure = ("held_out", "pass@64")
_PANELS = ((_RIGHT, _EFFECTIVE), (_RIGHT, _HELD_OUT_PASS), (_HELD_OUT_RIGHT, _HELD_OUT_PASS))
_LABELS = {
    _RIGHT: "right answers, training puzzles, %",
    _EFFECTIVE: "effective solutions, training puzzles",
    _HELD_OUT_RIGHT: "right answers, held-out puzzles, %",
    _HELD_OUT_PASS: "pass@64, held-out puzzles, %",
}
_LEVELS = 101

_INTRO = (
    "{train_puzzles} training puzzles seen again and again, {puzzles} held-out ones; evaluated every {every} steps, "
    "{steps} steps at most, or until 1.1 effective solutions are left. Every figure is computed from the probabilities "
    "of all solutions of a puzzle, not from samples. Right: the probability of a "
    "solution. Effective solutions: exp of the entropy over the solutions of a right answer. Points and lines: means "
    "over seeds; bands and intervals: 95% over seeds (Student's t), on these puzzles and from this base policy; bands "
    "of two runs: from the one to the other."
)

Runs = dict[str, list[list[dict[str, Any]]]]
"""System -> its runs, one a seed: the points of each in the order of their steps."""


def write_report(path: Path, out: Path | None = None) -> Path:
    """Draw the outcome of an exact study, ``STUDY.jsonl``, into ``out``, by default ``STUDY.html`` beside it.

    Returns:
        The page's path.

    Raises:
        UserError: the file isn't such an outcome, or holds no run.
    """
    facts, runs = load(path)
    styles = {name: _style(index) for index, name in enumerate(runs)}
    levels = accuracy_levels(runs)
    sections = [
        Section(
            "At the same accuracy, stopped and sampled as is best",
            "Where an algorithm may choose the step at which it is stopped and the temperature at which it is sampled, "
            "the most diversity that it has at each accuracy. A line above another is more than sampling hotter or "
            "stopping earlier. The base policy may choose its temperature.",
            figure=svg(_panels(runs, styles, _draw_best)),
        ),
        *_tables(runs, levels),
        Section(
            "Along training",
            "T = 1, from the base policy on the left; a mark every evaluation, bands over seeds. Up and to the right "
            "is better.",
            figure=svg(_panels(runs, styles, _draw_training)),
        ),
        Section(
            "Along the sampling temperature",
            "The policy at the end of each run, sampled colder and hotter; the mark is T = 1. The grey line is the "
            "base policy.",
            figure=svg(_panels(runs, styles, _draw_temperature)),
        ),
        Section("Step by step", "T = 1; bands over seeds.", figure=svg(_steps_figure(runs, styles))),
        Section("At the end of each run", "T = 1.", table=_end_table(runs)),
    ]
    return write_page(out or path.with_suffix(".html"), f"Comparison: {path.stem}", _INTRO.format(**facts), sections)


def load(path: Path) -> tuple[dict[str, Any], Runs]:
    """The facts of a study and its runs, in the order in which the file has them.

    Raises:
        UserError: the file isn't the outcome of an exact study, or holds no run.
    """
    header, *lines = JsonLines(path).read() or [None]
    if not (isinstance(header, dict) and "study" in header):
        raise UserError(f"{path}: not the outcome of an exact study, whose first line has the study")
    if not lines:
        raise UserError(f"{path}: no run in it yet")
    usual = min(line["lr"] for line in lines)
    found: dict[str, dict[int, list[dict[str, Any]]]] = {}
    for line in lines:
        name = line["variant"] if line["lr"] == usual else f"{line['variant']}, rate {line['lr']:g}"
        found.setdefault(name, {}).setdefault(line["seed"], []).append(line)
    return header["study"], {
        name: [sorted(points, key=lambda point: point["step"]) for points in seeds.values()]
        for name, seeds in found.items()
    }


def accuracy_levels(runs: Runs) -> dict[str, float]:
    """Accuracies on the training puzzles at which systems are compared, by their name."""
    ends = [points[-1]["train"]["1"]["right"] for points in runs.get(BASELINE, next(iter(runs.values())))]
    name = BASELINE if BASELINE in runs else next(iter(runs))
    return {f"{share:.0%} of {name}'s": share * float(np.mean(ends)) for share in OF_BASELINE}


def _tables(runs: Runs, levels: Mapping[str, float]) -> list[Section]:
    return [
        Section(
            f"At {100 * level:.1f}% right on the training puzzles, {name}",
            "Along training: at T = 1, where that accuracy is first reached. Best: over all steps and temperatures. "
            "– : not reached.",
            table=Table(
                ["", "runs", "effective solutions", "held-out pass@64", "best effective", "best held-out pass@64"],
                [[system, str(len(points)), *_level_row(points, level)] for system, points in runs.items()],
            ),
        )
        for name, level in levels.items()
    ]


def _level_row(runs: Sequence[Sequence[Mapping[str, Any]]], level: float) -> list[str]:
    cells = []
    for choose in (at_accuracy, best_at_level):
        for worth, scale, form in ((_EFFECTIVE, 1, "{:.2f}"), (_HELD_OUT_PASS, 100, "{:.1f}%")):
            values = [scale * choose(points, _RIGHT, worth, level) for points in runs]
            cells.append(_cell(values, form))
    return cells


def _cell(values: Sequence[float], form: str) -> str:
    """The mean and its interval; how many runs it is of, where not all of them got there."""
    mean, low, high = interval(values)
    if np.isnan(mean):
        return "–"
    text = form.format(mean)
    if not np.isnan(low):
        text += f" [{form.format(low)}, {form.format(high)}]"
    reached = int(np.sum(~np.isnan(values)))
    return text if reached == len(values) else f"{text} ({reached} of {len(values)} runs)"


def _end_table(runs: Runs) -> Table:
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
    return Table(header, rows)


def _outside(points: Sequence[Mapping[str, Any]]) -> float:
    """The largest share of right answers, of all that were sampled, which the table doesn't hold."""
    sampled = [
        point[split]["sampled"] for point in points for split in ("train", "held_out") if "sampled" in point[split]
    ]
    return max((one["outside"] for one in sampled), default=float("nan"))


def _clipped(points: Sequence[Mapping[str, Any]]) -> float:
    found = [point["training"]["clipped"] for point in points if "clipped" in point["training"]]
    return float(np.mean(found)) if found else float("nan")


# ---- figures ---------------------------------------------------------------------------------------------------------

Draw = Callable[[Any, Measure, Measure, list[list[dict[str, Any]]], dict[str, Any]], None]


def _panels(runs: Runs, styles: Mapping[str, dict[str, Any]], draw: Draw) -> Figure:
    figure = Figure(figsize=(12.5, 4.9), layout="constrained")
    for axes, (horizontal, vertical) in zip(figure.subplots(1, len(_PANELS)), _PANELS, strict=True):
        base = next(iter(runs.values()))[0][0]
        xs, ys = (_scaled(along_temperature(base, measure), measure) for measure in (horizontal, vertical))
        axes.plot(xs, ys, color="#adb5bd", linewidth=3, zorder=0, label="base policy")
        for name, of_seeds in runs.items():
            draw(axes, horizontal, vertical, of_seeds, styles[name] | {"label": name})
        axes.set_xlabel(_LABELS[horizontal])
        axes.set_ylabel(_LABELS[vertical])
        axes.grid(alpha=0.3)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", fontsize=8, ncols=6)
    return figure


def _scaled(values: np.ndarray, measure: Measure) -> np.ndarray:
    return values if measure[1] == "effective" else 100 * values


def _draw_training(axes: Any, x: Measure, y: Measure, runs: list[list[dict[str, Any]]], style: dict[str, Any]) -> None:
    steps = min(len(points) for points in runs)
    xs, ys = ([_scaled(along_training(points[:steps], measure), measure) for points in runs] for measure in (x, y))
    axes.plot(np.mean(xs, 0), np.mean(ys, 0), **style, marker=".", linewidth=1.3)
    _band(axes, np.mean(xs, 0), np.array(ys), style["color"])


def _draw_temperature(
    axes: Any, x: Measure, y: Measure, runs: list[list[dict[str, Any]]], style: dict[str, Any]
) -> None:
    xs, ys = ([_scaled(along_temperature(points[-1], measure), measure) for points in runs] for measure in (x, y))
    axes.plot(np.mean(xs, 0), np.mean(ys, 0), **style, linewidth=1.3)
    at_one = [
        float(_scaled(np.array([np.mean([points[-1][split]["1"][name] for points in runs])]), (split, name))[0])
        for split, name in (x, y)
    ]
    axes.plot(*at_one, marker="o", markersize=4, color=style["color"])


def _draw_best(axes: Any, x: Measure, y: Measure, runs: list[list[dict[str, Any]]], style: dict[str, Any]) -> None:
    levels = np.linspace(0, 1, _LEVELS)
    best = np.array([_scaled(best_at(points, x, y, levels), y) for points in runs])
    reached = ~np.isnan(best).any(0)
    axes.plot(100 * levels[reached], best[:, reached].mean(0), **style, linewidth=1.3)
    _band(axes, 100 * levels[reached], best[:, reached], style["color"])


def _steps_figure(runs: Runs, styles: Mapping[str, dict[str, Any]]) -> Figure:
    figure = Figure(figsize=(12.5, 4.2), layout="constrained")
    measures = (_RIGHT, _EFFECTIVE, _HELD_OUT_RIGHT, _HELD_OUT_PASS)
    for axes, measure in zip(figure.subplots(1, len(measures)), measures, strict=True):
        for name, of_seeds in runs.items():
            steps = min(len(points) for points in of_seeds)
            numbers = [point["step"] for point in of_seeds[0][:steps]]
            values = np.array([_scaled(along_training(points[:steps], measure), measure) for points in of_seeds])
            axes.plot(numbers, values.mean(0), **styles[name], label=name, linewidth=1.2)
            _band(axes, np.array(numbers), values, styles[name]["color"])
        axes.set_xlabel("step")
        axes.set_title(_LABELS[measure], fontsize=9)
        axes.grid(alpha=0.3)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", fontsize=8, ncols=6)
    return figure


def _band(axes: Any, xs: np.ndarray, ys: np.ndarray, color: Any) -> None:
    """The interval of the mean of ``ys`` (runs, points); of two runs, whose interval says nothing, their range."""
    if len(ys) == 2:
        axes.fill_between(xs, ys.min(0), ys.max(0), color=color, alpha=0.25, linewidth=0)
    elif len(ys) > 2 and ys.shape[1]:
        _, low, high = np.array([interval(column) for column in ys.T]).T
        axes.fill_between(xs, low, high, color=color, alpha=0.12, linewidth=0)


def _style(index: int) -> dict[str, Any]:
    """Color and line of the ``index``-th system: neighbours differ more than in a palette for many."""
    palette = matplotlib.colormaps["tab10"].colors
    return {"color": palette[index % len(palette)], "linestyle": ("-", "--", ":")[index // len(palette) % 3]}


def is_exact_study(path: Path) -> bool:
    """Whether a file is the outcome of an exact study."""
    try:
        header = json.loads(read_text(path).partition("\n")[0])
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(header, dict) and header.keys() == {"study"}
