"""The report of a study: table, pass@k, coverage against accuracy, training curves, stability."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from adjustText import adjust_text
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from recipe.flowrl.common.foreign import read_text
from recipe.flowrl.common.statistics import pass_at_k, powers_of_two
from recipe.flowrl.compare.comparisons import differences, means, pairs, run_to_run, summary
from recipe.flowrl.compare.outcomes import BASE_TEMPERATURES, TEMPERATURES
from recipe.flowrl.reporting.figures import smooth
from recipe.flowrl.reporting.study_page import Section, Table, line_style, svg, write_page

_INTRO = (
    "The same base policy, data, rollouts, steps and evaluation for every algorithm; {puzzles} held-out puzzles, "
    "{samples} samples each. {steps} steps, seeds run: {seeds}. Intervals: 95%, bootstrap over puzzles and seeds. "
    "Coverage is the share of a puzzle's existing solutions that were found, counted up to commutativity and "
    "associativity."
)

_SEVERAL_BASES = (
    " The runs start from {count} base policies, which the same command trained on machines whose arithmetic differs: "
    "differences pair only runs from the same one, and the base policy's figures are means over them."
)

Styles = dict[str, dict[str, Any]]

_BASE_STYLE = {"color": "#555555", "linestyle": "-", "marker": "D"}


def write_report(path: Path, out: Path | None = None) -> Path:
    """Draw the outcome of a study, ``STUDY.json``, into ``out``, by default ``STUDY.html`` beside it; returns that."""
    study, name = json.loads(read_text(path)), path.stem
    facts = study["study"]
    names, samples = list(study["runs"]), facts["samples"]
    bases = list(study["base"].values())
    systems = _systems(study)
    styles = dict(zip(systems, [_BASE_STYLE, *map(_style, range(len(names)))], strict=True))
    spread = run_to_run(study["runs"], 1.0, samples)
    sections = [
        Section(f"Held-out puzzles at T = {temperature}", "", table=_table(systems, temperature, samples))
        for temperature in TEMPERATURES
    ]
    if len(names) > 1:
        sections.append(_against(study["runs"], names[0], samples, spread))
    sections += [
        Section(
            "pass@k",
            "Unbiased; T = 1, mean over puzzles and seeds.",
            figure=svg(_pass_at_k_figure(systems, styles, samples)),
        ),
        Section(
            "Coverage against accuracy",
            "One point an algorithm, mean over seeds, T = 1. Up and to the right is better. The line is the base "
            "policy, untrained and sampled colder: what lies on it only became surer. The cross, where there is one: "
            "one standard deviation between runs of one algorithm.",
            figure=svg(_coverage_figure(systems, styles, samples, spread)),
        ),
        Section(
            "Training",
            "Solve rate of the rollouts, mean over seeds, running mean. Each step has other puzzles, the same for all "
            "algorithms but those with dynamic sampling, which leave out puzzles that are solved always or never.",
            figure=svg(_training_figure(study, styles)),
        ),
        Section("Stability", "Over all seeds.", table=_stability(study)),
    ]
    if study["sweep"]:
        text = "Training solve rate, %, over the last steps on the first seed; the best one, marked, is used."
        sections.append(Section("Learning rates", text, table=_sweep(study)))
    seeds = ", ".join(sorted({seed for runs in study["runs"].values() for seed in runs}, key=int))
    intro = _INTRO.format(**facts | {"seeds": seeds, "puzzles": len(bases[0]["exist"])})
    if len(bases) > 1:
        intro += _SEVERAL_BASES.format(count=len(bases))
    return write_page(out or path.with_suffix(".html"), f"Comparison: {name}", intro, sections)


def _systems(study: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """The evaluations of the base policies, and of every algorithm's runs."""
    evaluations = {name: [run["evaluation"] for run in runs.values()] for name, runs in study["runs"].items()}
    return {"base": list(study["base"].values())} | evaluations


def _table(systems: dict[str, list[dict[str, Any]]], temperature: float, samples: int) -> Table:
    rows = {name: summary(runs, temperature, samples) for name, runs in systems.items()}
    header = list(rows["base"])
    ordered = sorted(rows, key=lambda name: -rows[name][f"avg@{samples}"][0])
    cells = [
        [
            name,
            "–" if name == "base" else str(len(systems[name])),
            *[_interval(measure, *rows[name][measure]) for measure in header],
        ]
        for name in ordered
    ]
    return Table(["", "seeds", *header], cells)


def _interval(measure: str, value: float, low: float, high: float) -> str:
    if measure in ("distinct", "entropy", "kl_to_base"):
        return f"{value:.2f} [{low:.2f}, {high:.2f}]"
    return f"{100 * value:.1f}% [{100 * low:.1f}, {100 * high:.1f}]"


def _against(
    runs: dict[str, dict[str, dict[str, Any]]], reference: str, samples: int, spread: dict[str, float]
) -> Section:
    measures = (f"avg@{samples}", f"pass@{samples}", "coverage")
    found = {name: differences(runs[name], runs[reference], 1.0, samples) for name in runs if name != reference}
    found = {name: difference for name, difference in found.items() if difference}
    several = [name for name in found if len(pairs(runs[name], runs[reference])) > 1]
    text = (
        f"Points of percent more than {reference}, T = 1, paired by puzzle and run; 95% intervals, not corrected for "
        f"their number ({len(found)} in each panel: one in twenty lies beside zero by chance). Orange: beside zero, "
        "with two pairs of runs or more. "
    ) + (
        "Runs of one algorithm differ from seed to seed, by a standard deviation (pooled) of "
        + ", ".join(f"{100 * spread[measure]:.1f} in {measure}" for measure in measures)
        + "; intervals from so few seeds hold too little of that."
        if spread
        else "With one seed the intervals hold nothing of how runs of one algorithm differ."
    )
    return Section(f"Against {reference}", text, figure=svg(_differences_figure(found, several, measures)))


def _differences_figure(
    found: dict[str, dict[str, tuple[float, float, float]]], several: Sequence[str], measures: Sequence[str]
) -> Figure:
    figure = Figure(figsize=(11, 1.2 + 0.24 * len(found)), layout="constrained")
    rows = np.arange(len(found))[::-1]
    for axes, measure in zip(figure.subplots(1, len(measures), sharey=True), measures, strict=True):
        value, low, high = 100 * np.array([difference[measure] for difference in found.values()]).reshape(-1, 3).T
        axes.axvline(0, color="#16181d", linewidth=0.8)
        clear = ((low > 0) | (high < 0)) & np.isin(list(found), several)
        for chosen, color in ((clear, "#d9480f"), (~clear, "#868e96")):
            spans = [(value - low)[chosen], (high - value)[chosen]]
            axes.errorbar(value[chosen], rows[chosen], xerr=spans, fmt="o", color=color, markersize=4, elinewidth=1.2)
        axes.set_yticks(rows, list(found))
        axes.set_ylim(-0.7, len(found) - 0.3)
        axes.set_title(measure, fontsize=10)
        axes.grid(axis="x", alpha=0.3)
    return figure


def _pass_at_k_figure(systems: dict[str, list[dict[str, Any]]], styles: Styles, samples: int) -> Figure:
    figure = Figure(figsize=(11, 4.8), layout="constrained")
    ks = powers_of_two(samples)
    rates = {name: 100 * np.array([_mean_pass_at_k(runs, samples, k) for k in ks]) for name, runs in systems.items()}
    panels = (("puzzles solved, %", 0.0), ("more than the base policy, points", rates["base"]))
    for axes, (label, less) in zip(figure.subplots(1, len(panels)), panels, strict=True):
        for name, rate in rates.items():
            axes.plot(ks, rate - less, **styles[name], label=name, markersize=3, linewidth=1.1)
        axes.set_xscale("log", base=2)
        axes.set_xticks(ks, [str(k) for k in ks])
        axes.set_xlabel("k")
        axes.set_ylabel(label)
        axes.grid(alpha=0.3)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right center", fontsize=8)
    return figure


def _mean_pass_at_k(runs: list[dict[str, Any]], samples: int, k: int) -> float:
    return float(pass_at_k(np.array([run["1.0"]["correct"] for run in runs]), samples, k).mean())


def _coverage_figure(
    systems: dict[str, list[dict[str, Any]]], styles: Styles, samples: int, spread: dict[str, float]
) -> Figure:
    figure = Figure(figsize=(11, 5.6), layout="constrained")
    axes = figure.add_subplot()
    colder = {f"base, T = {temperature}": temperature for temperature in BASE_TEMPERATURES if temperature != 1.0}
    found = {name: means(runs, 1.0, samples) for name, runs in systems.items()}
    found |= {name: means(systems["base"], temperature, samples) for name, temperature in colder.items()}
    accuracy = f"avg@{samples}"
    places = {name: (100 * measures[accuracy], 100 * measures["coverage"]) for name, measures in found.items()}
    line = sorted((places[name] for name in ("base", *colder)), key=lambda place: place[1])
    axes.plot(*zip(*line, strict=True), color=_BASE_STYLE["color"], linewidth=1, zorder=0)
    for name, place in places.items():
        style = styles.get(name, _BASE_STYLE)
        axes.plot(*place, color=style["color"], marker=style["marker"], markersize=6)
    axes.margins(x=0.1)
    if spread:
        width, height = 100 * spread[accuracy], 100 * spread["coverage"]
        place = axes.get_xlim()[0] + 1.2 * width, axes.get_ylim()[0] + 1.2 * height
        axes.errorbar(*place, xerr=width, yerr=height, color="#868e96", linewidth=1)
        axes.annotate("one run to the next", place, textcoords="offset points", xytext=(6, 4), fontsize=7.5)
    axes.set_xlabel(f"{accuracy}, %")
    axes.set_ylabel(f"solutions found in {samples} samples, % of those that exist")
    axes.grid(alpha=0.3)
    _name(axes, places)
    return figure


def _name(axes: Axes, places: dict[str, tuple[float, float]]) -> None:
    """Write names beside their points, apart from each other, with a line to the point where a name is further off."""
    texts = [axes.text(*place, name, fontsize=7.5) for name, place in places.items()]
    FigureCanvasAgg(axes.figure)  # measures the names
    axes.figure.draw_without_rendering()  # settles the layout, which moving the names must not change
    line = {"arrowstyle": "-", "color": "#adb5bd", "linewidth": 0.8}
    adjust_text(
        texts,
        *zip(*places.values(), strict=True),
        ax=axes,
        expand=(1.25, 1.6),
        force_text=(0.2, 0.4),
        iter_lim=1000,  # the default is a second, however far that gets on a busy machine
        arrowprops=line,
    )


def _training_figure(study: dict[str, Any], styles: Styles) -> Figure:
    figure = Figure(figsize=(11, 4.4), layout="constrained")
    axes = figure.add_subplot()
    for name, runs in study["runs"].items():
        solved = [run["training"]["curves"]["solve_rate"][1] for run in runs.values()]
        steps = runs[next(iter(runs))]["training"]["curves"]["solve_rate"][0]
        style = styles[name] | {"marker": None}
        axes.plot(steps, 100 * smooth(np.mean(solved, axis=0)), **style, label=name, linewidth=1.1)
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


def _sweep(study: dict[str, Any]) -> Table:
    """The sweep's keys are JSON's: the learning rates as text."""
    rows = []
    for name, solved in study["sweep"].items():
        rates = [f"{100 * rate:.1f}" + " *" * (float(lr) == study["lr"][name]) for lr, rate in solved.items()]
        rows.append([name, *rates])
    return Table(["", *(f"{float(lr):g}" for lr in next(iter(study["sweep"].values())))], rows)


def _style(index: int) -> dict[str, Any]:
    """Color, line and marker of the ``index``-th algorithm."""
    style = line_style(index)
    return style | {"marker": "s" if style["linestyle"] == "--" else "o"}
