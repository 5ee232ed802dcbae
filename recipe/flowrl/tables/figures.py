"""The page's plots: ours with intervals beside the paper's, pass@k, diversity."""

import textwrap
from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from recipe.flowrl.diversity.measures import MEASURES
from recipe.flowrl.tables.blocks import OURS, PAPER, Block
from recipe.flowrl.tables.diversity_blocks import shared_values
from recipe.flowrl.tables.numbers import Cell, column_title, mean_over_columns
from recipe.flowrl.tables.systems import System

_WIDTH = 11.4
_OURS, _PAPER = "#1f5fa8", "#d2691e"


def beside_figure(block: Block) -> Figure:
    """A panel for each column: a line for each system, ours with its interval, the paper's as a diamond."""
    names = list(dict.fromkeys(row.name for row in block.rows))
    figure = Figure(figsize=(_WIDTH, 1.1 + 0.34 * len(names)), layout="constrained")
    panels = figure.subplots(1, len(block.columns), sharey=True, squeeze=False)[0]
    for index, (axes, title) in enumerate(zip(panels, block.columns, strict=True)):
        for row in block.rows:
            if row.source == OURS:
                _interval(axes, row.cells[index], names.index(row.name), _OURS, "ours")
            elif row.source == PAPER:
                _interval(axes, row.cells[index], names.index(row.name), _PAPER, "paper", marker="D")
        _finish(axes, title, names)
    handles = {
        label: handle for axes in panels for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    figure.legend(handles.values(), handles.keys(), loc="outside right upper", fontsize=8, frameon=False)
    return figure


def forest_figure(block: Block) -> Figure:
    """A panel for each column of differences, around a line at zero."""
    names = [row.name for row in block.rows]
    figure = Figure(figsize=(_WIDTH, 1.0 + 0.34 * len(names)), layout="constrained")
    panels = figure.subplots(1, len(block.columns), sharey=True, squeeze=False)[0]
    for index, (axes, title) in enumerate(zip(panels, block.columns, strict=True)):
        axes.axvline(0, color="#888888", linewidth=0.9)
        for position, row in enumerate(block.rows):
            _interval(axes, row.cells[index], position, _OURS, "difference")
        _finish(axes, title, names)
    return figure


def pass_at_k_figure(systems: Sequence[System]) -> Figure:
    """pass@k of each benchmark, with the intervals as bands."""
    names = list(dict.fromkeys(name for system in systems for name in system.benchmarks))
    columns = min(3, len(names))
    lines = -(-len(names) // columns)
    figure = Figure(figsize=(_WIDTH, 2.7 * lines), layout="constrained")
    panels = figure.subplots(lines, columns, squeeze=False).ravel()
    for axes, name in zip(panels, names, strict=False):
        for system, color in zip(systems, _colors(systems), strict=True):
            curve = system.benchmarks.get(name, {}).get("pass_at_k", {})
            _band(axes, [(int(k), _percent(entry)) for k, entry in curve.items()], color, system.label)
        axes.set_title(column_title(name, None), fontsize=9)
        axes.set_xlabel("k", fontsize=8)
        axes.set_ylabel("problems solved, %", fontsize=8)
    for axes in panels[len(names) :]:
        axes.set_visible(False)
    _legend(figure, panels[0])
    return figure


def diversity_figure(systems: Sequence[System], benchmark: str, population: str, m: str) -> Figure:
    """Left: distinct solution forms against the number of answers drawn. Right: every measure at ``m`` answers."""
    figure = Figure(figsize=(_WIDTH, 1.6 + 0.5 * max(3, len(systems))), layout="constrained")
    shown = [name for name in MEASURES if shared_values(systems, benchmark, population, name, m)[0]]
    left, right = figure.subfigures(1, 2, width_ratios=(1, 2))
    axes = left.subplots()
    colors = _colors(systems)
    for index, (system, color) in enumerate(zip(systems, colors, strict=True)):
        _band(axes, _curve(systems, index, benchmark, population, m), color, system.label)
    axes.set_xlabel("answers drawn", fontsize=8)
    axes.set_ylabel("expected distinct forms", fontsize=8)
    _legend(left, axes)
    columns = min(4, len(shown))
    panels = right.subplots(-(-len(shown) // columns), columns, sharey=True, squeeze=False).ravel()
    for axes, name in zip(panels, shown, strict=False):
        rows = shared_values(systems, benchmark, population, name, m)
        for position, (values, color) in enumerate(zip(rows, colors, strict=True)):
            _interval(axes, mean_over_columns([values]), position, color, "")
        arrow = "→ more diverse" if MEASURES[name].sign > 0 else "← more diverse"
        _finish(axes, f"{MEASURES[name].title}\n{arrow}", [system.label for system in systems])
    for axes in panels[len(shown) :]:
        axes.set_visible(False)
    return figure


def _curve(systems: Sequence[System], index: int, benchmark: str, population: str, m: str) -> list[tuple[int, Cell]]:
    """Expected distinct forms of a system up to ``m`` answers, all on the problems that every system has ``m`` of."""
    found = [s.diversity["benchmarks"][benchmark]["values"][population]["distinct_forms"] for s in systems]
    problems = set.intersection(*(set(by_draws[m]) for by_draws in found))
    return [
        (int(draws), mean_over_columns([[values[problem] for problem in sorted(problems)]]))
        for draws, values in found[index].items()
        if int(draws) <= int(m)
    ]


def _percent(entry: dict[str, Any]) -> Cell:
    return Cell(*(100 * number for number in (entry["value"], *entry["interval"])))


def _interval(axes: Axes, cell: Cell, position: int, color: Any, label: str, marker: str = "o") -> None:
    if cell.value is None:
        return
    if cell.low is not None:
        axes.plot([cell.low, cell.high], [position, position], color=color, linewidth=1.6)
    filled = color if cell.low is not None else "none"
    axes.plot(
        cell.value, position, marker, color=color, markerfacecolor=filled, markersize=5, label=label, linestyle=""
    )


def _band(axes: Axes, points: Sequence[tuple[int, Cell]], color: Any, label: str) -> None:
    if not points:
        return
    points = sorted(points, key=lambda point: point[0])
    x = [point[0] for point in points]
    axes.plot(x, [cell.value for _, cell in points], "o-", color=color, markersize=3, linewidth=1.3, label=label)
    axes.fill_between(x, [cell.low for _, cell in points], [cell.high for _, cell in points], color=color, alpha=0.1)
    axes.set_xscale("log", base=2)
    ticks = [2**power for power in range(int(np.log2(max(x))) + 1)]
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.grid(alpha=0.3)
    axes.tick_params(labelsize=8)


def _finish(axes: Axes, title: str, names: Sequence[str]) -> None:
    axes.set_title(title, fontsize=8.5)
    axes.set_yticks(range(len(names)), [textwrap.fill(name, 26) for name in names], fontsize=8)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.tick_params(labelsize=8)
    axes.grid(axis="x", alpha=0.3)
    axes.xaxis.set_major_locator(MaxNLocator(4))


def _legend(figure: Any, axes: Axes) -> None:
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=7.5, frameon=False)


def _colors(systems: Sequence[System]) -> list[Any]:
    palette = matplotlib.colormaps["tab10"].colors
    return [palette[index % len(palette)] for index in range(len(systems))]
