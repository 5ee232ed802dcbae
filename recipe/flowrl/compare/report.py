"""The report of a study: table, pass@k, coverage against accuracy, training curves, stability."""

import json
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from recipe.flowrl.compare.evaluation import TEMPERATURES
from recipe.flowrl.compare.statistics import bootstrap, pass_at_k, powers_of_two
from recipe.flowrl.reporting.figures import smooth
from recipe.flowrl.reporting.page import Section, Table, svg, write_page

_INTRO = (
    "The same base policy, data, rollouts, steps and evaluation for every algorithm; {puzzles} held-out puzzles, "
    "{samples} samples each. {steps} steps, seeds run: {seeds}. Intervals: 95%, bootstrap over puzzles and seeds. "
    "Coverage is the share of a puzzle's existing solutions that were found, counted up to commutativity and "
    "associativity."
)


def write_report(directory: Path, name: str) -> Path:
    """Write ``directory/NAME.html`` from ``directory/NAME.json``; returns its path."""
    study = json.loads((directory / f"{name}.json").read_text())
    facts = study["study"]
    names, samples = list(study["runs"]), facts["samples"]
    systems = {"base": [study["base"]]}
    systems |= {name: [run["evaluation"] for run in study["runs"][name].values()] for name in names}
    colors = dict(zip(systems, ["#555555", *_colors(len(names))], strict=True))
    sections = [
        Section(f"Held-out puzzles at T = {temperature}", "", table=_table(systems, temperature, samples))
        for temperature in TEMPERATURES
    ]
    sections += [
        Section("pass@k", "Unbiased; T = 1.", figure=svg(_pass_at_k_figure(systems, colors, samples))),
        Section(
            "Coverage against accuracy",
            "One point an algorithm, mean over seeds, T = 1. Up and to the right is better.",
            figure=svg(_coverage_figure(systems, colors, samples)),
        ),
        Section("Training", "Solve rate of the rollouts, running mean.", figure=svg(_training_figure(study, colors))),
        Section("Stability", "Over all seeds.", table=_stability(study)),
    ]
    seeds = ", ".join(sorted({seed for runs in study["runs"].values() for seed in runs}, key=int))
    intro = _INTRO.format(**facts | {"seeds": seeds, "puzzles": len(study["base"]["exist"])})
    return write_page(directory / f"{name}.html", f"Comparison: {name}", intro, sections)


def summary(runs: list[dict[str, Any]], temperature: float, samples: int) -> dict[str, tuple[float, float, float]]:
    """Each measure of a system with its interval.

    Args:
        runs: what :func:`evaluate` returned, one for each seed.
        temperature: of the samples.
        samples: of each puzzle.
    """
    exist = np.array(runs[0]["exist"], dtype=float)
    columns = {
        name: np.array([run[str(temperature)][name] for run in runs], dtype=float) for name in runs[0][str(temperature)]
    }
    measures = {
        "avg@16": columns["correct_16"] / 16,
        f"pass@{samples}": pass_at_k(columns["correct"], samples, samples),
        "distinct": columns["distinct"],
        "coverage": columns["distinct"] / exist,
    }
    measures |= {name: columns[name] for name in ("entropy", "kl_to_base") if name in columns}
    return {name: bootstrap(values) for name, values in measures.items()}


def _table(systems: dict[str, list[dict[str, Any]]], temperature: float, samples: int) -> Table:
    rows = {name: summary(runs, temperature, samples) for name, runs in systems.items()}
    header = list(rows["base"])
    ordered = sorted(rows, key=lambda name: -rows[name]["avg@16"][0])
    cells = [[name, *[_interval(measure, *rows[name][measure]) for measure in header]] for name in ordered]
    return Table(["", *header], cells)


def _interval(measure: str, value: float, low: float, high: float) -> str:
    if measure in ("distinct", "entropy", "kl_to_base"):
        return f"{value:.2f} [{low:.2f}, {high:.2f}]"
    return f"{100 * value:.1f}% [{100 * low:.1f}, {100 * high:.1f}]"


def _pass_at_k_figure(systems: dict[str, list[dict[str, Any]]], colors: dict[str, Any], samples: int) -> Figure:
    figure = Figure(figsize=(11, 4.4), layout="constrained")
    axes = figure.add_subplot()
    ks = powers_of_two(samples)
    for name, runs in systems.items():
        correct = np.array([run["1.0"]["correct"] for run in runs])
        rates = [bootstrap(pass_at_k(correct, samples, k)) for k in ks]
        axes.plot(ks, [100 * rate[0] for rate in rates], "o-", color=colors[name], label=name, markersize=3)
        low, high = ([100 * rate[end] for rate in rates] for end in (1, 2))
        axes.fill_between(ks, low, high, color=colors[name], alpha=0.08)
    axes.set_xscale("log", base=2)
    axes.set_xticks(ks, [str(k) for k in ks])
    axes.set_xlabel("k")
    axes.set_ylabel("puzzles solved, %")
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right center", fontsize=8)
    return figure


def _coverage_figure(systems: dict[str, list[dict[str, Any]]], colors: dict[str, Any], samples: int) -> Figure:
    figure = Figure(figsize=(11, 4.4), layout="constrained")
    axes = figure.add_subplot()
    for name, runs in systems.items():
        measures = summary(runs, 1.0, samples)
        (x, *x_ends), (y, *y_ends) = measures["avg@16"], measures["coverage"]
        axes.errorbar(
            100 * x,
            100 * y,
            xerr=[[100 * (x - x_ends[0])], [100 * (x_ends[1] - x)]],
            yerr=[[100 * (y - y_ends[0])], [100 * (y_ends[1] - y)]],
            fmt="o",
            color=colors[name],
            elinewidth=0.8,
            label=name,
        )
    axes.set_xlabel("avg@16, %")
    axes.set_ylabel(f"solutions found in {samples} samples, % of those that exist")
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right center", fontsize=8)
    return figure


def _training_figure(study: dict[str, Any], colors: dict[str, Any]) -> Figure:
    figure = Figure(figsize=(11, 4.4), layout="constrained")
    axes = figure.add_subplot()
    for name, runs in study["runs"].items():
        for index, run in enumerate(runs.values()):
            steps, values = run["training"]["curves"]["solve_rate"]
            label = name if index == 0 else None
            axes.plot(steps, 100 * smooth(np.array(values)), color=colors[name], label=label, linewidth=1.1)
    axes.set_xlabel("step")
    axes.set_ylabel("solve rate, %")
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right center", fontsize=8)
    return figure


def _stability(study: dict[str, Any]) -> Table:
    rows = []
    for name, runs in study["runs"].items():
        records = [run["training"] for run in runs.values()]
        largest = max((record["grad_norm_max"] for record in records if record["grad_norm_max"] is not None), default=0)
        not_finite = sum(len(record["non_finite_steps"]) for record in records)
        rows.append([name, f"{study['lr'][name]:g}", f"{largest:.3g}", str(not_finite)])
    return Table(["", "learning rate", "largest gradient norm", "steps with a non-finite metric"], rows)


def _colors(number: int) -> list[Any]:
    palette = matplotlib.colormaps["tab20"].colors
    return [palette[index % len(palette)] for index in range(number)]
