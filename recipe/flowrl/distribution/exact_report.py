"""The report of the exact test: a table, the probabilities over all answers, and the way to the target."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from recipe.flowrl.common.foreign import read_text
from recipe.flowrl.reporting.study_page import Section, Table, line_style, svg, write_page

_FLOOR = 1e-5
"""Probability below which the picture is white."""
NEAR = 0.01
"""KL to the target, in nats, at which a policy counts as having reached it."""
_VARIES = {
    "task": lambda value: f"task {value}",
    "beta": lambda value: "the default beta" if value is None else f"beta {value:g}",
    "reward": lambda value: {"raw": "raw reward", "group_normalized": "normalised reward"}[value],
    "staleness": lambda value: f"staleness {value}",
    "mode": lambda value: {"objective": "objective", "stack": "whole stack"}[value],
    "overrides": lambda value: " ".join(text for text in value if not text.startswith("data.seed=")) or "as it is",
}
"""What a result's name says of it, where results differ in it."""
_DEFAULTS = {"task": "modes", "beta": None, "staleness": 0}
"""Of results that are older than these options."""
_COLUMNS = {
    "kl_policy_target": "KL(π‖π*) nats",
    "kl_target_policy": "KL(π*‖π) nats",
    "total_variation": "total variation",
    "modes_covered": "modes covered",
    "log_z_error": "|log Z − log Z*|",
    "expected_reward": "expected reward",
}
_INTRO = (
    "All answers to a prompt can be enumerated, so the policy's distance from a target distribution is computed, "
    "without sampling. The figures are those of the worst of four prompts. "
)
_OF_TASK = {
    "modes": "Every answer has two of sixteen tokens; the target is π* ∝ π_ref exp(r / τ), τ = 1/6, FlowRL's fixed "
    "point with raw rewards and β = 3, and the optimum of KL-regularised reward maximisation with coefficient τ. A "
    "mode counts as covered if the policy gives it at least half of its target probability. ",
    "endings": "Answers have one to four tokens and end with the end-of-sequence token; right ones have reward 1, "
    "others 0. Each result is measured against the target that its own objective has with its beta, its reward and its "
    "form of length normalisation, if it has one, else against π_ref exp(β r) / Z. ",
}


def write_report(directory: Path, out: Path | None = None) -> Path:
    """Draw every ``result.json`` in ``directory`` and below into ``out``, by default ``directory/report.html``.

    Returns:
        The page's path.

    Raises:
        FileNotFoundError: there is none.
    """
    found = [_DEFAULTS | json.loads(read_text(path)) for path in sorted(directory.glob("**/result.json"))]
    if not found:
        raise FileNotFoundError(f"{directory}: no result.json in it or below")
    varies = [key for key in _VARIES if len({_VARIES[key](result[key]) for result in found}) > 1]
    groups: dict[str, list[dict[str, Any]]] = {}
    for result in found:
        result["name"] = ", ".join([result["algo"], *(_VARIES[key](result[key]) for key in varies)])
        groups.setdefault(result["name"], []).append(result)
    ordered = sorted(groups.values(), key=lambda runs: np.mean([run["worst"]["kl_policy_target"] for run in runs]))
    results = [runs[0] for runs in ordered]
    header = ["algorithm", "seeds", f"samples to {NEAR} nats", *_COLUMNS.values()]
    enumerated = [result for result in results if "probabilities" in result]
    note = (
        "Where there are several seeds: their mean, and the least and the largest." if len(found) > len(groups) else ""
    )
    intro = _INTRO + "".join(_OF_TASK[task] for task in sorted({result["task"] for result in found}, reverse=True))
    sections = [
        Section("Worst prompt at the end", note, table=Table(header, [_row(runs) for runs in ordered])),
        *_lengths_section(ordered),
        *(
            [
                Section(
                    "Probabilities of all answers to the first prompt",
                    "Rows: first token, columns: second token; the same scale in all, modes circled.",
                    figure=svg(_answers_figure(enumerated)),
                )
            ]
            if enumerated
            else []
        ),
        Section(
            "KL to the target against samples", "Worst prompt. Lower is closer.", figure=svg(_curves_figure(results))
        ),
    ]
    return write_page(out or directory / "report.html", "Does the policy match the distribution?", intro, sections)


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
    return [runs[0]["name"], str(len(runs)), _show([samples_to(run, NEAR) for run in runs], "{:,.0f}"), *cells]


def _lengths_section(groups: Sequence[Sequence[dict[str, Any]]]) -> list[Section]:
    """What an objective does to the lengths of right answers, against its own target; of results that say so."""
    with_target = [runs for runs in groups if all("target" in run for run in runs)]
    if not any(run["task"] == "endings" for runs in with_target for run in runs):
        return []
    rows = [
        [
            runs[0]["name"],
            "its own" if runs[0]["own_target"] else "π_ref exp(β r) / Z",
            *(
                _show([run[where]["worst"][name] if where else run["worst"][name] for run in runs], "{:.3f}")
                for name in ("expected_reward", "right_length", "kl_right")
                for where in ("", "target")
            ),
        ]
        for runs in with_target
    ]
    header = ["algorithm", "measured against"]
    for name in ("P(right)", "length of right answers", "KL(π(·|right)‖π_ref(·|right))"):
        header += [name, "its target's"]
    text = "Least P(right), longest mean length and largest KL over prompts."
    return [Section("Lengths and accuracy", text, table=Table(header, rows))]


def _show(values: list[float | None], form: str) -> str:
    if None in values:
        return "–"
    low, high = form.format(min(values)), form.format(max(values))
    return low if len(values) == 1 else f"{form.format(np.mean(values))} [{low}, {high}]"


def _answers_figure(results: list[dict[str, Any]]) -> Figure:
    first = results[0]["probabilities"]
    grids = {"reference": first["reference"][0], "target": first["target"][0]}
    grids |= {result["name"]: result["probabilities"]["policy"][0] for result in results}
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
        axes.plot(samples, divergence, **line_style(index), label=result["name"], linewidth=1.4)
    axes.set_yscale("log")
    axes.set_xlabel("samples")
    axes.set_ylabel("KL(π‖π*), nats")
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right center", fontsize=7)
    return figure
