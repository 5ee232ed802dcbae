"""The page of ``gpu_acceptance``: verdicts, and how time and memory divide."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from markupsafe import Markup
from matplotlib.figure import Figure

from recipe.flowrl.reporting.study_page import Section, Table, svg, write_page

_PHASES = {
    "timing_s/gen": "rollout",
    "timing_s/old_log_prob": "log-probs",
    "timing_s/ref": "reference",
    "timing_s/update_actor": "update",
    "timing_s/update_weights": "weight sync",
}


def write(path: Path, record: Mapping[str, Any]) -> None:
    """Write the page of what the JSON file holds."""
    counts = record["summary"]
    machine = record["machine"]
    where = machine["gpu"]["name"] if machine["gpu"] else f"{machine['cpu']}, no GPU: tiny models"
    packages = ", ".join(f"{name} {version}" for name, version in machine["packages"].items())
    intro = (
        f"{counts['pass']} pass, {counts['fail']} fail, {counts['not run']} not run. {where}; {machine['date']}; "
        f"{record['elapsed_s']:.0f} of {record['budget_s']:.0f} s; Python {machine['python']}, {packages}. The weights "
        "are random: nothing here says how well a model learns."
    )
    sections = [Section("Checks", "", Table(("check", "value", "bound", "verdict", "why"), _rows(record["checks"])))]
    if figure := _times(record["runs"]):
        sections.append(Section("Where a step's time goes", "Mean of the steps after a run's first.", figure=figure))
    if record["gpu_memory"]:
        text = "In use by all processes together; grey: an action, in its order."
        sections.append(Section("Memory of the GPU", text, figure=_memory(record)))
    write_page(path, "Acceptance on one GPU", intro, sections)


def _rows(checks: list[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    def value(check: Mapping[str, Any]) -> str:
        return "" if check["value"] is None else f"{check['value']:.4g} {check['unit']}".strip()

    return [(check["title"], value(check), check["bound"], check["verdict"], check["why"]) for check in checks]


def _times(runs: Mapping[str, Any]) -> Markup | None:
    means: dict[str, dict[str, float]] = {}
    for name, run in runs.items():
        later = list(run["steps"].values())[1:]
        if later:
            means[name] = {key: sum(step.get(key) or 0.0 for step in later) / len(later) for key in _PHASES}
    if not means:
        return None
    figure = Figure(figsize=(9, 0.9 + 0.45 * len(means)), layout="constrained")
    axes = figure.subplots()
    left = dict.fromkeys(means, 0.0)
    for key, label in _PHASES.items():
        axes.barh(list(means), [mean[key] for mean in means.values()], left=list(left.values()), label=label)
        left = {name: left[name] + mean[key] for name, mean in means.items()}
    axes.invert_yaxis()
    axes.set_xlabel("s")
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    return svg(figure)


def _memory(record: Mapping[str, Any]) -> Markup:
    begin = record["gpu_memory"][0][0]
    figure = Figure(figsize=(11, 3.5), layout="constrained")
    axes = figure.subplots()
    times, used = zip(*record["gpu_memory"], strict=True)
    axes.plot([time - begin for time in times], [size / 1e9 for size in used])
    for number, (name, (start, end)) in enumerate(record["spans"].items()):
        axes.axvspan(start - begin, end - begin, color="0.9" if number % 2 else "0.8", zorder=0)
        axes.annotate(name, ((start - begin), 1.01), xycoords=("data", "axes fraction"), fontsize=8)
    axes.set_xlabel("s")
    axes.set_ylabel("GB")
    return svg(figure)
