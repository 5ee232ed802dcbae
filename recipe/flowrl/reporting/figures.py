"""Draws the report's figures with matplotlib, as SVG that follows the colours of the page.

Matplotlib knows only fixed colours, a page in light and dark mode needs two sets. So figures are drawn with
placeholder colours, which are then replaced by CSS variables. Text stays text (no glyph outlines), which keeps a figure
at some 10-30 kB and lets it use the font of the page.

Every figure comes with a ``readout``: what the pointer shows over the plot (see ``templates/report.js``).
"""

import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from recipe.flowrl.reporting.run_records import Metrics, Puzzle, Series

PALETTE = ("blue", "orange", "teal", "violet", "pink", "green", "red", "sky", "brown", "grey")
_INK = {name: f"#f0{index:02x}0f" for index, name in enumerate((*PALETTE, "axis", "grid", "text"))}

_MAX_POINTS = 300
_SIZE = {"normal": 5.6, "wide": 11.7}
_TICKS = [1, 2, 2.5, 5, 10]
_HEIGHT, _LEFT, _RIGHT, _BOTTOM, _TOP = 2.35, 0.58, 0.14, 0.44, 0.12

# A curve that lies at 0 is drawn over the axis and in full.
_OVER_THE_AXIS: dict[str, Any] = {"clip_on": False, "zorder": 3}

_STYLE = {
    "axes.edgecolor": _INK["axis"],
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.labelcolor": _INK["text"],
    "axes.labelsize": 8.5,
    "axes.spines.left": False,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "font.size": 8.5,
    "grid.color": _INK["grid"],
    "grid.linewidth": 0.7,
    "lines.solid_capstyle": "round",
    "svg.fonttype": "none",
    "svg.hashsalt": "flowrl",
    # Labels hold names from the data, and a "$" in them is no formula.
    "text.parse_math": False,
    "xtick.color": _INK["axis"],
    "xtick.labelcolor": _INK["text"],
    "xtick.major.size": 3,
    "ytick.color": _INK["axis"],
    "ytick.labelcolor": _INK["text"],
    "ytick.major.size": 0,
}


@dataclass(frozen=True)
class Figure:
    """A drawn figure: ``svg`` markup, ``legend`` as (label, colour name, mark), ``readout`` as JSON-ready data."""

    key: str
    title: str
    caption: str
    svg: str
    legend: list[tuple[str, str, str]]
    readout: dict[str, Any]
    wide: bool = False


@dataclass(frozen=True)
class Curve:
    """One metric of a line chart, or several where ``pattern`` has a ``*`` (see `names.match`).

    ``label`` may use ``{1}``, ``{2}``, … for what the stars stand for. ``kind``: ``trend`` is a running mean over the
    faint raw curve, ``points`` marks every value, ``dashed`` likewise for a secondary curve. ``peak``: where a long run
    is thinned out, keep each bin's maximum instead of its mean.
    """

    pattern: str
    label: str
    color: str = "blue"
    kind: Literal["trend", "points", "dashed"] = "trend"
    peak: bool = False


@dataclass(frozen=True)
class Drawn:
    """A curve found in the data."""

    label: str
    color: str
    kind: str
    series: Series


def number(value: float) -> str:
    """A number for people: three to four significant digits, thousands separated."""
    size = abs(value)
    if size >= 1000 or value == round(value):
        return f"{value:,.0f}"
    if size < 1e-3:
        return f"{value:.1e}"
    return f"{value:.{2 if size >= 10 else 3}f}"


def percent(value: float) -> str:
    """A fraction as a percentage with one decimal."""
    return f"{100 * value:.1f}%"


def resolve(curves: Sequence[Curve], metrics: Metrics) -> list[Drawn]:
    """The curves that ``metrics`` has. Several matches of a pattern get their source named and colours of their own."""
    drawn: list[Drawn] = []
    for curve in curves:
        found = metrics.match(curve.pattern)
        for index, (name, texts) in enumerate(found.items()):
            label = curve.label.format(name, *texts)
            color = PALETTE[(PALETTE.index(curve.color) + 2 * index) % len(PALETTE)]
            prefix = f"{texts[0]}: " if len(found) > 1 else ""
            series = thin(metrics[name], np.max if curve.peak else np.mean)
            drawn.append(Drawn(prefix + label, color, curve.kind, series))
    return drawn


def thin(series: Series, reduce: Callable[[np.ndarray], Any] = np.mean, limit: int = _MAX_POINTS) -> Series:
    """At most ``limit`` points: bins of equal count, each at its last step and with its reduced value."""
    if len(series) <= limit:
        return series
    bins = np.array_split(np.arange(len(series)), limit)
    values = np.array([reduce(series.values[b]) for b in bins])
    return Series(np.array([series.steps[b[-1]] for b in bins]), values)


def smooth(values: np.ndarray) -> np.ndarray:
    """Running mean over a Gaussian window of about an eighth of the curve, centred: no lag. ``(N,) -> (N,)``"""
    sigma = max(1.5, len(values) / 40)
    reach = int(3 * sigma)
    window = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    total = np.convolve(values, window)[reach : reach + len(values)]
    return total / np.convolve(np.ones_like(values), window)[reach : reach + len(values)]


def line_figure(
    key: str,
    title: str,
    caption: str,
    curves: list[Drawn],
    *,
    unit: Literal["number", "percent"] = "number",
    log: bool = False,
    from_zero: bool = False,
    reference: tuple[float, str] | None = None,
    span: tuple[int, int] | None = None,
) -> Figure:
    """Curves over training steps, from ``span[0]`` to ``span[1]`` (by default, as far as the curves go).

    ``reference`` is a horizontal line with its label. ``log`` falls back to linear if no value is positive.
    """
    show = percent if unit == "percent" else number
    legend = [(c.label, c.color, "line" if c.kind == "trend" else c.kind) for c in curves]
    with matplotlib.rc_context(_STYLE):
        canvas, axes = _axes("normal")
        for curve in curves:
            _draw(axes, curve)
        if reference:
            axes.axhline(reference[0], color=_INK["grey"], linewidth=1, linestyle=(0, (4, 3)), zorder=1)
            legend.append((reference[1], "grey", "dashed"))
        positive = np.concatenate([c.series.values[c.series.values > 0] for c in curves])
        if log and len(positive):
            axes.set_yscale("log", nonpositive="mask")
            narrow = positive.max() < 100 * positive.min()
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if narrow else (1,), numticks=6))
            axes.yaxis.set_minor_locator(NullLocator())
            axes.yaxis.set_major_formatter(FuncFormatter(_power_of_ten))
        else:
            axes.yaxis.set_major_locator(MaxNLocator(6, steps=_TICKS))
            scale, suffix = (100, "%") if unit == "percent" else (1, "")
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{scale * value:g}{suffix}"))
        if from_zero:
            axes.set_ylim(0, max(axes.get_ylim()[1], 1e-9))
        _step_axis(axes, span)
        steps = np.unique(np.concatenate([c.series.steps for c in curves]))
        rows = [(c.label, c.color, dict(zip(c.series.steps.tolist(), c.series.values, strict=True))) for c in curves]
        values = [
            {"label": label, "color": color, "values": [show(by[s]) if s in by else None for s in steps.tolist()]}
            for label, color, by in rows
        ]
        readout = _readout(axes, steps.tolist(), [f"step {s}" for s in steps.tolist()], values)
        return Figure(key, title, caption, _svg(canvas, key), legend, readout)


def _draw(axes: Axes, curve: Drawn) -> None:
    steps, values, ink = curve.series.steps, curve.series.values, _INK[curve.color]
    if curve.kind == "trend":
        smoothed = len(values) >= 20
        marker = "o" if len(values) == 1 else None
        width, alpha = (0.9, 0.35) if smoothed else (1.7, 1)
        axes.plot(steps, values, color=ink, linewidth=width, alpha=alpha, marker=marker, **_OVER_THE_AXIS)
        if smoothed:
            axes.plot(steps, smooth(values), color=ink, linewidth=1.9, **_OVER_THE_AXIS)
        return
    many = len(values) > 60
    line = "-" if curve.kind == "points" else (0, (3, 2))
    width = 1.7 if curve.kind == "points" else 1.2
    marker = None if many else "o"
    style = {"linewidth": width, "linestyle": line, "marker": marker, "markersize": 3.6}
    axes.plot(steps, values, color=ink, **style, **_OVER_THE_AXIS)


def phase_figure(
    key: str, title: str, caption: str, steps: np.ndarray, phases: dict[str, np.ndarray], colors: list[str]
) -> Figure:
    """Seconds per phase, stacked over steps. ``steps`` and every value of ``phases`` are ``(N,)``."""
    thinned = {name: thin(Series(steps, seconds), limit=150) for name, seconds in phases.items()}
    steps = next(iter(thinned.values())).steps
    with matplotlib.rc_context(_STYLE):
        canvas, axes = _axes("wide")
        # One more point at each end, so that the first and the last step are as wide as the others.
        edges = np.concatenate([[steps[0] - 1], steps, [steps[-1] + 1]])
        stack = [np.pad(t.values, 1, mode="edge") for t in thinned.values()]
        axes.stackplot(edges, stack, colors=[_INK[c] for c in colors], step="mid", linewidth=0)
        axes.set_ylabel("seconds")
        _step_axis(axes)
        axes.set_xlim(steps[0] - 0.5, steps[-1] + 0.5)
        values = [
            {"label": name, "color": color, "values": [f"{v:.2f} s" for v in t.values]}
            for (name, t), color in zip(thinned.items(), colors, strict=True)
        ]
        readout = _readout(axes, steps.tolist(), [f"step {s}" for s in steps.tolist()], values)
        legend = [(name, color, "box") for name, color in zip(phases, colors, strict=True)]
        return Figure(key, title, caption, _svg(canvas, key), legend, readout, wide=True)


def puzzle_figure(key: str, title: str, caption: str, first: list[Puzzle], last: list[Puzzle]) -> Figure:
    """Distinct solutions found against those that exist: a bar per puzzle, or per group where puzzles are many."""
    before = {p.key: p.found for p in first}
    rows = [Bar(_name(p), p.exist, p.found, before.get(p.key, np.nan)) for p in last if p.exist]
    grouped = len(rows) > 80
    rows = _groups(rows) if grouped else sorted(rows, key=lambda bar: (bar.exist, bar.found))
    x, exist, found, start = np.arange(len(rows)), *np.array([(b.exist, b.found, b.start) for b in rows]).T
    with matplotlib.rc_context(_STYLE):
        canvas, axes = _axes("wide")
        axes.bar(x, exist, width=0.82, color=_INK["grid"])
        axes.bar(x, found, width=0.82, color=_INK["teal"])
        axes.hlines(start, x - 0.41, x + 0.41, color=_INK["orange"], linewidth=2)
        # Puzzles with far more solutions than anyone samples would flatten the bars that matter.
        most_found = np.nanmax(np.concatenate([found, start, [1.0]]))
        axes.set_ylim(0, 1.06 * min(exist.max(), 2.5 * most_found))
        side = 0.7 + max(0, 14 - len(rows)) / 2
        axes.set_xlim(-side, len(rows) - 1 + side)
        axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
        if grouped:
            axes.set_xticks(x, [number(count) for count in exist])
            axes.set_xlabel("puzzles in groups, by the number of solutions that exist")
        else:
            axes.xaxis.set_major_locator(NullLocator())
            axes.set_xlabel("puzzles, by the number of solutions that exist", labelpad=8)
        axes.set_ylabel("distinct solutions")
        columns = [("exist", "grid", "box", exist), ("found, last validation", "teal", "box", found)]
        if np.isfinite(start).any():
            columns.append(("found, first validation", "orange", "line", start))
        values = [
            {"label": label, "color": color, "values": [number(v) if np.isfinite(v) else None for v in column]}
            for label, color, _, column in columns
        ]
        readout = _readout(axes, x.tolist(), [bar.name for bar in rows], values)
        legend = [(label, color, mark) for label, color, mark, _ in columns]
        return Figure(key, title, caption, _svg(canvas, key), legend, readout, wide=True)


@dataclass(frozen=True)
class Bar:
    """Distinct solutions of a puzzle, or their mean over a group. ``start`` is nan without an earlier validation."""

    name: str
    exist: float
    found: float
    start: float


def _name(puzzle: Puzzle) -> str:
    facts = puzzle.facts
    if "numbers" in facts and "target" in facts:
        return f"{' '.join(map(str, facts['numbers']))} → {facts['target']}"
    return puzzle.prompt.strip().splitlines()[-1][:60] if puzzle.prompt.strip() else "puzzle"


def _groups(rows: list[Bar], limit: int = 40) -> list[Bar]:
    """Means over puzzles with the same number of solutions, or a similar one where there are many such numbers."""
    rows = sorted(rows, key=lambda bar: bar.exist)
    counts, sizes = np.unique([bar.exist for bar in rows], return_counts=True)
    cuts = np.cumsum(sizes)[:-1] if len(counts) <= limit else limit
    result = []
    for indices in np.array_split(np.arange(len(rows)), cuts):
        part = [rows[index] for index in indices]
        span = " to ".join(f"{n:.0f}" for n in dict.fromkeys((part[0].exist, part[-1].exist)))
        exist, found, start = np.array([(bar.exist, bar.found, bar.start) for bar in part]).T
        known = start[np.isfinite(start)]
        begin = float(known.mean()) if len(known) else np.nan
        result.append(Bar(f"{len(part)} puzzles with {span} solutions", exist.mean(), found.mean(), begin))
    return result


def _axes(size: str) -> tuple[Canvas, Axes]:
    """A canvas whose margins are fixed in inches, so that the plots of a page line up."""
    width = _SIZE[size]
    canvas = Canvas(figsize=(width, _HEIGHT))
    canvas.patch.set_visible(False)
    box = (_LEFT / width, _BOTTOM / _HEIGHT, 1 - (_LEFT + _RIGHT) / width, 1 - (_BOTTOM + _TOP) / _HEIGHT)
    axes = canvas.add_axes(box, facecolor="none")
    axes.set_axisbelow(True)
    return canvas, axes


def _step_axis(axes: Axes, span: tuple[int, int] | None = None) -> None:
    if span:
        margin = 0.015 * max(1, span[1] - span[0])
        axes.set_xlim(span[0] - margin, span[1] + margin)
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True, steps=_TICKS))
    axes.set_xlabel("step")


def _power_of_ten(value: float, _: int) -> str:
    return f"{value:g}" if 1e-2 <= value <= 1e3 else f"{value:.0e}".replace("e-0", "e-").replace("e+0", "e")


def _readout(axes: Axes, x: list[float], titles: list[str], series: list[dict[str, Any]]) -> dict[str, Any]:
    """What the pointer shows: the plot's box as fractions of the picture, its limits, a title and texts for each x."""
    box = axes.get_position()
    return {
        "box": [round(v, 5) for v in (box.x0, 1 - box.y1, box.width, box.height)],
        "xlim": [round(v, 5) for v in axes.get_xlim()],
        "x": x,
        "titles": titles,
        "series": series,
    }


def _svg(canvas: Canvas, key: str) -> str:
    """The figure as inline SVG: colours of the page, ids that are unique in the page, no metadata."""
    buffer = io.StringIO()
    no_metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    canvas.savefig(buffer, format="svg", transparent=True, metadata=no_metadata)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r'\b(id="|xlink:href="#|url\(#)', rf"\g<1>{key}-", text)
    text = re.sub(r'^<svg[^>]*?(viewBox="[^"]*")[^>]*>', r'<svg \1 aria-hidden="true">', text)
    for name, ink in _INK.items():
        text = text.replace(ink, f"var(--{name})")
    return text
