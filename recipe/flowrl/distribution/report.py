"""The report of the exact test: a table, the probabilities over all answers, and the way to the target."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from recipe.flowrl.reporting.page import Section, Table, line_style, svg, write_page

_FLOOR = 1e-5
"""Probability below which the picture is white."""
NEAR = 0.01
"""KL to the target, in nats, at which a policy counts as having reached it."""
_COLUMNS = {
    "kl_policy_target": "KL(π‖π*) nats",
    "kl_target_policy": "KL(π*‖π) nats",
    "total_variation": "total variation",
    "modes_covered": "modes covered",
    "log_z_error": "|log Z − log Z*|",
    "expected_reward": "expected reward",
}
_INTRO = (
    "Every answer has two of sixteen tokens, so all 256 can be enumerated and the target π* ∝ π_ref exp(r / τ), "
    "τ = 1/6, is known exactly. FlowRL's fixed point with raw rewards and β = 3 is this distribution, and so is the "
    "optimum of KL-regularised reward maximisation with coefficient τ. The figures are those of the worst of four "
    "prompts, computed from the policy's own probabilities, without sampling. A mode counts as covered if the policy "
    "gives it at least half of its target probability."
)


def write_report(directory: Path) -> Path:
    """Write ``directory/report.html`` from every ``result.json`` in it and below; returns its path.

    Raises:
        FileNotFoundError: there is none.
    """
    found = [json.loads(path.read_text()) for path in sorted(directory.glob("**/result.json"))]
    if not found:
        raise FileNotFoundError(f"{directory}: no result.json in it or below")
    groups: dict[str, list[dict[str, Any]]] = {}
    for result in found:
        groups.setdefault(_name(result), []).append(result)
    ordered = sorted(groups.values(), key=lambda runs: np.mean([run["worst"]["kl_policy_target"] for run in runs]))
    results = [runs[0] for runs in ordered]
    header = ["algorithm", "seeds", f"samples to {NEAR} nats", *_COLUMNS.values()]
    note = (
        "Where there are several seeds: their mean, and the least and the largest." if len(found) > len(groups) else ""
    )
    sections = [
        Section("Worst prompt at the end", note, table=Table(header, [_row(runs) for runs in ordered])),
        Section(
            "Probabilities of all answers to the first prompt",
            "Rows: first token, columns: second token; the same scale in all, modes circled.",
            figure=svg(_answers_figure(results)),
        ),
        Section(
            "KL to the target against samples", "Worst prompt. Lower is closer.", figure=svg(_curves_figure(results))
        ),
    ]
    return write_page(directory / "report.html", "Does the policy match the distribution?", _INTRO, sections)


def samples_to(result: dict[str, Any], divergence: float) -> int | None:
    """Samples after which KL(π‖π*) of the worst prompt stays at or below ``divergence`` nats; None if it doesn't."""
    reached = None
    for point in reversed(result["curve"]):
        if point["worst"]["kl_policy_target"] > divergence:
            break
        reached = point["samples"]
    return reached


def _row(runs: list[dict[str, Any]]) -> list[str]:
    """A line of the table: one algorithm's runs, which differ in their seed only."""
    cells = [_show([run["worst"][name] for run in runs], "{:.4f}") for name in _COLUMNS]
    return [_name(runs[0]), str(len(runs)), _show([samples_to(run, NEAR) for run in runs], "{:,.0f}"), *cells]


def _name(result: dict[str, Any]) -> str:
    published = " (β = 15, group-normalised)" if result["reward"] == "group_normalized" else ""
    stack = ", whole stack" if result["mode"] == "stack" else ""
    return result["algo"] + published + stack


def _show(values: list[float | None], form: str) -> str:
    if None in values:
        return "–"
    low, high = form.format(min(values)), form.format(max(values))
    return low if len(values) == 1 else f"{form.format(np.mean(values))} [{low}, {high}]"


def _answers_figure(results: list[dict[str, Any]]) -> Figure:
    first = results[0]["probabilities"]
    grids = {"reference": first["reference"][0], "target": first["target"][0]}
    grids |= {_name(result): result["probabilities"]["policy"][0] for result in results}
    columns = 6
    lines = -(-len(grids) // columns)
    figure = Figure(figsize=(11.5, 2.1 * lines), layout="constrained")
    side = round(len(first["target"][0]) ** 0.5)
    norm = LogNorm(_FLOOR, 1.0)
    rows, places = np.divmod(results[0]["modes"][0], side)
    for index, (name, probabilities) in enumerate(grids.items()):
        axes = figure.add_subplot(lines, columns, index + 1)
        grid = np.maximum(np.reshape(probabilities, (side, side)), _FLOOR)
        # Not imshow: an embedded picture is a request, which the page forbids.
        image = axes.pcolormesh(grid, norm=norm, cmap="Blues", edgecolors="none")
        axes.invert_yaxis()
        axes.set_aspect("equal")
        axes.scatter(places + 0.5, rows + 0.5, s=46, facecolors="none", edgecolors="#d9480f", linewidths=1)
        axes.set_title(name, fontsize=7)
        axes.set_xticks([])
        axes.set_yticks([])
    colorbar = figure.colorbar(image, ax=figure.axes, shrink=0.5, label="probability")
    colorbar.solids.set_rasterized(False)
    return figure


def _curves_figure(results: list[dict[str, Any]]) -> Figure:
    figure = Figure(figsize=(11.5, 4.6), layout="constrained")
    axes = figure.add_subplot()
    for index, result in enumerate(results):
        samples = [point["samples"] for point in result["curve"]]
        divergence = [point["worst"]["kl_policy_target"] for point in result["curve"]]
        axes.plot(samples, divergence, **line_style(index), label=_name(result), linewidth=1.4)
    axes.set_yscale("log")
    axes.set_xlabel("samples")
    axes.set_ylabel("KL(π‖π*), nats")
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right center", fontsize=7)
    return figure
