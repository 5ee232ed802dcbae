"""The figures of an exact study: accuracy against diversity, and both against the step."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from recipe.flowrl.compare.frontiers import (
    EFFECTIVE,
    HELD_OUT_PASS,
    HELD_OUT_RIGHT,
    RIGHT,
    Measure,
    Run,
    Runs,
    along_temperature,
    along_training,
    best_at,
    best_at_level,
    interval,
)
from recipe.flowrl.reporting.study_page import switched_by

_PANELS = ((RIGHT, EFFECTIVE), (RIGHT, HELD_OUT_PASS), (HELD_OUT_RIGHT, HELD_OUT_PASS))
_KEPT = (EFFECTIVE, HELD_OUT_PASS)
_LABELS = {
    RIGHT: "right answers, training puzzles, %",
    EFFECTIVE: "effective solutions, training puzzles",
    HELD_OUT_RIGHT: "right answers, held-out puzzles, %",
    HELD_OUT_PASS: "pass@64, held-out puzzles, %",
}
_LEVELS = 101

_Draw = Callable[[Any, Measure, Measure, Sequence[Run], dict[str, Any]], None]


def best_figure(runs: Runs, among: Iterable[str] = ()) -> Figure:
    """The most diversity at each accuracy, over all steps and sampling temperatures.

    Args:
        runs: what is drawn.
        among: the systems of another figure, all of these with them, whose looks they have here too.
    """
    return _panels(runs, _draw_best, among)


def level_figure(runs: Runs, level: float) -> Figure:
    """The same where ``level`` of the answers to the training puzzles are right.

    A row a system, a dot a run; a system of which no run gets there has none.
    """
    figure = Figure(figsize=(12.5, 1.2 + 0.22 * len(runs)), layout="constrained")
    best = {
        name: np.array([[best_at_level(points, RIGHT, worth, level) for points in of_seeds] for worth in _KEPT])
        for name, of_seeds in runs.items()
    }
    looks = styles(runs)
    rows = sorted(
        (name for name in runs if not np.isnan(best[name]).all()), key=lambda name: -np.nanmean(best[name][0])
    )
    panels = figure.subplots(1, len(_KEPT), sharey=True)
    for axes, index, worth in zip(panels, range(len(_KEPT)), _KEPT, strict=True):
        for row, name in enumerate(rows):
            look = {key: looks[name][key] for key in ("color", "gid")}
            values = _scaled(best[name][index], worth)
            axes.plot(values, np.full(len(values), row), "o", **look, markersize=5, alpha=0.7)
        axes.set_xlabel(_LABELS[worth])
        axes.grid(alpha=0.3)
    figure.suptitle(f"At {100 * level:.0f}% right answers to the training puzzles", fontsize=10)
    panels[0].set_yticks(range(len(rows)), rows)
    panels[0].invert_yaxis()
    return figure


def training_figure(runs: Runs) -> Figure:
    """At temperature 1, evaluation by evaluation."""
    return _panels(runs, _draw_training)


def temperature_figure(runs: Runs) -> Figure:
    """The last policies, from the coldest temperature to the hottest."""
    return _panels(runs, _draw_temperature)


def steps_figure(runs: Runs) -> Figure:
    """Each measure at temperature 1 against the step."""
    figure = Figure(figsize=(12.5, 4.2), layout="constrained")
    measures, looks = (RIGHT, EFFECTIVE, HELD_OUT_RIGHT, HELD_OUT_PASS), styles(runs)
    for axes, measure in zip(figure.subplots(1, len(measures)), measures, strict=True):
        for name, of_seeds in runs.items():
            style = looks[name]
            steps = min(len(points) for points in of_seeds)
            numbers = [point["step"] for point in of_seeds[0][:steps]]
            values = np.array([_scaled(along_training(points[:steps], measure), measure) for points in of_seeds])
            axes.plot(numbers, values.mean(0), **style, label=name, linewidth=1.2)
            _band(axes, np.array(numbers), values, style)
        axes.set_xlabel("step")
        axes.set_title(_LABELS[measure], fontsize=9)
        axes.grid(alpha=0.3)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", fontsize=8, ncols=7)
    return figure


def _panels(runs: Runs, draw: _Draw, among: Iterable[str] = ()) -> Figure:
    looks = styles(among or runs)
    figure = Figure(figsize=(12.5, 4.9), layout="constrained")
    for axes, (horizontal, vertical) in zip(figure.subplots(1, len(_PANELS)), _PANELS, strict=True):
        base = next(iter(runs.values()))[0][0]
        xs, ys = (_scaled(along_temperature(base, measure), measure) for measure in (horizontal, vertical))
        axes.plot(xs, ys, color="#adb5bd", linewidth=3, zorder=0, label="base policy")
        for name, of_seeds in runs.items():
            draw(axes, horizontal, vertical, of_seeds, looks[name] | {"label": name})
        axes.set_xlabel(_LABELS[horizontal])
        axes.set_ylabel(_LABELS[vertical])
        axes.grid(alpha=0.3)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", fontsize=8, ncols=7)
    return figure


def _scaled(values: np.ndarray, measure: Measure) -> np.ndarray:
    return values if measure[1] == "effective" else 100 * values


def _draw_training(axes: Any, x: Measure, y: Measure, runs: Sequence[Run], style: dict[str, Any]) -> None:
    steps = min(len(points) for points in runs)
    xs, ys = ([_scaled(along_training(points[:steps], measure), measure) for points in runs] for measure in (x, y))
    axes.plot(np.mean(xs, 0), np.mean(ys, 0), **style, marker=".", linewidth=1.3)
    _band(axes, np.mean(xs, 0), np.array(ys), style)


def _draw_temperature(axes: Any, x: Measure, y: Measure, runs: Sequence[Run], style: dict[str, Any]) -> None:
    xs, ys = ([_scaled(along_temperature(points[-1], measure), measure) for points in runs] for measure in (x, y))
    axes.plot(np.mean(xs, 0), np.mean(ys, 0), **style, linewidth=1.3)
    at_one = [
        float(_scaled(np.array([np.mean([points[-1][split]["1"][name] for points in runs])]), (split, name))[0])
        for split, name in (x, y)
    ]
    axes.plot(*at_one, marker="o", markersize=4, color=style["color"], gid=style["gid"])


def _draw_best(axes: Any, x: Measure, y: Measure, runs: Sequence[Run], style: dict[str, Any]) -> None:
    levels = np.linspace(0, 1, _LEVELS)
    best = np.array([_scaled(best_at(points, x, y, levels), y) for points in runs])
    reached = ~np.isnan(best).any(0)
    axes.plot(100 * levels[reached], best[:, reached].mean(0), **style, linewidth=1.3)
    _band(axes, 100 * levels[reached], best[:, reached], style)


def _band(axes: Any, xs: np.ndarray, ys: np.ndarray, style: Mapping[str, Any]) -> None:
    """The interval of the mean of ``ys`` (runs, points); of two runs, whose interval says nothing, their range."""
    look = {name: style[name] for name in ("color", "gid")}
    if len(ys) == 2:
        axes.fill_between(xs, ys.min(0), ys.max(0), **look, alpha=0.25, linewidth=0)
    elif len(ys) > 2 and ys.shape[1]:
        _, low, high = np.array([interval(column) for column in ys.T]).T
        axes.fill_between(xs, low, high, **look, alpha=0.12, linewidth=0)


def styles(systems: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Color and line of each system: neighbours differ more than in a palette for many."""
    palette = matplotlib.colormaps["tab10"].colors
    return {
        system: {
            "color": palette[index % len(palette)],
            "linestyle": ("solid", "dashed", "dotted")[index // len(palette) % 3],
            "gid": switched_by(index),
        }
        for index, system in enumerate(systems)
    }
