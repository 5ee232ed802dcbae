"""The table on the console, and ``report.html``."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from recipe.flowrl.evaluate.model_path import model_name
from recipe.flowrl.reporting.study_page import Section, Table, svg, write_page

_HOW = (
    "Model: {model}. n = {n} samples a problem at temperature {temperature}, top-p {top_p}, at most {max_tokens} "
    "tokens, seed {seed}. Engine: {engine}. Graded by {grader}. Begun {date}. Intervals: 95%, bootstrap over problems."
)
_READING = (
    "avg@n: accuracy of one response, ± its standard error over problems. maj@n: accuracy of the answer given most "
    "often; ties count as the share of right answers among those that tie. No answer: responses in which no final "
    "answer was found. Truncated: responses that were cut off at the limit. Both count as wrong where they are."
)


def results_table(summary: Mapping[str, Any]) -> Table:
    """A row for each benchmark, in percent."""
    rows = []
    for name, found in summary["benchmarks"].items():
        n = found["n"]
        majority = "–" if found["maj_at_n"] is None else _with_interval(found["maj_at_n"])
        rows.append(
            [
                name,
                str(found["problems"]),
                _avg(found["avg_at_n"]),
                _with_interval(found["pass_at_k"][str(n)]),
                majority,
                f"{100 * found['extraction_failed']:.1f}",
                f"{100 * found['truncated']:.1f}",
                f"{found['mean_tokens']:.0f}",
            ]
        )
    n = summary["protocol"]["n"]
    header = ["", "problems", f"avg@{n}", f"pass@{n}", f"maj@{n}", "no answer", "truncated", "tokens"]
    return Table(header, rows)


def paired_table(paired: Mapping[str, Any]) -> Table:
    """A row for each benchmark, in points of percent."""
    rows = [
        [
            name,
            str(found["problems"]),
            f"{100 * found['value']:+.1f} [{100 * found['interval'][0]:+.1f}, {100 * found['interval'][1]:+.1f}]",
            f"{found['p_value']:.3f}",
        ]
        for name, found in paired["benchmarks"].items()
    ]
    return Table(["", "problems", "difference in avg@n", "p, sign flips"], rows)


def notes(summary: Mapping[str, Any]) -> list[str]:
    """What the table doesn't say: graders that broke off, and the Codeforces rating."""
    failed = {name: found["grader_failed"] for name, found in summary["benchmarks"].items() if found["grader_failed"]}
    lines = [
        f"{name}: the grader broke off over {100 * rate:.1f}% of the responses, which count as wrong; grade_only=true "
        "tries again"
        for name, rate in failed.items()
    ]
    if "codeforces" in summary["benchmarks"]:
        lines += _rating_lines(summary["benchmarks"]["codeforces"])
    return lines


def _rating_lines(found: Mapping[str, Any]) -> list[str]:
    lines = []
    if found["rating"] is not None:
        low, high = found["rating_interval"]
        lines.append(
            f"Codeforces rating {found['rating']:.0f} [{low:.0f}, {high:.0f}] over {len(found['rated_contests'])} "
            f"contests, above {100 * found['percentile']:.1f}% of rated users"
        )
    if unrated := found["unrated_contests"]:
        reasons: dict[str, list[str]] = {}
        for contest, reason in unrated.items():
            reasons.setdefault(reason, []).append(contest)
        lines += [f"not rated ({reason}): contests {', '.join(names)}" for reason, names in reasons.items()]
        if "no standings" in reasons:
            lines.append("standings: python -m recipe.flowrl prepare codeforces_standings out=DIR, then contests=DIR")
    if unknown := found["unknown_problems"]:
        lines.append(f"of no known contest: {', '.join(unknown)}")
    return lines


def text_table(table: Table) -> list[str]:
    """The table in columns of plain text."""
    rows = [list(table.header), *[list(row) for row in table.rows]]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join(
            [row[0].ljust(widths[0]), *[cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]]
        )
        for row in rows
    ]


def write_report(directory: Path, summary: Mapping[str, Any], out: Path | None = None) -> Path:
    """Write ``out``, by default ``directory/report.html``; returns its path."""
    protocol = summary["protocol"]
    engine = " ".join(str(value) for value in (protocol["engine"] or {"name": "unknown"}).values())
    sections = [Section("Results, %", _READING, table=results_table(summary))]
    if lines := notes(summary):
        sections.append(Section("Notes", " · ".join(lines)))
    if paired := summary.get("paired"):
        differs = paired["protocol_differs"]
        warning = f" The protocols differ ({'; '.join(differs)})." if differs else ""
        text = f"This model minus {paired['model']}, problem by problem; two-sided sign-flip test.{warning}"
        sections.append(Section("Against another model, points", text, table=paired_table(paired)))
    sections.append(Section("pass@k", "Unbiased; bands: 95%.", figure=svg(_pass_at_k(summary))))
    text = "Problems by the number of right responses: between the ends lie those on which training has a signal."
    sections.append(Section("Right responses of a problem", text, figure=svg(_counts(summary))))
    return write_page(
        out or directory / "report.html",
        f"Evaluation of {model_name(protocol['model'])}",
        _HOW.format(**protocol | {"engine": engine}),
        sections,
    )


def _avg(found: Mapping[str, Any]) -> str:
    error = "" if found["stderr"] is None else f" ± {100 * found['stderr']:.1f}"
    low, high = found["interval"]
    return f"{100 * found['value']:.1f}{error} [{100 * low:.1f}, {100 * high:.1f}]"


def _with_interval(found: Mapping[str, Any]) -> str:
    low, high = found["interval"]
    return f"{100 * found['value']:.1f} [{100 * low:.1f}, {100 * high:.1f}]"


def _pass_at_k(summary: Mapping[str, Any]) -> Figure:
    figure = Figure(figsize=(11, 4.0), layout="constrained")
    axes = figure.add_subplot()
    ticks: set[int] = set()
    for (name, found), color in zip(summary["benchmarks"].items(), _colors(summary), strict=True):
        ks = [int(k) for k in found["pass_at_k"]]
        values = [100 * entry["value"] for entry in found["pass_at_k"].values()]
        low, high = ([100 * entry["interval"][end] for entry in found["pass_at_k"].values()] for end in (0, 1))
        axes.plot(ks, values, "o-", color=color, label=name, markersize=3)
        axes.fill_between(ks, low, high, color=color, alpha=0.12)
        ticks |= {k for k in ks if k & (k - 1) == 0} | {ks[-1]}
    axes.set_xscale("log", base=2)
    axes.set_xticks(sorted(ticks), [str(k) for k in sorted(ticks)])
    axes.minorticks_off()
    axes.set_ylim(-2, 102)
    axes.set_xlabel("k")
    axes.set_ylabel("problems solved, %")
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right center", fontsize=8)
    return figure


def _counts(summary: Mapping[str, Any]) -> Figure:
    figure = Figure(figsize=(11, 3.2), layout="constrained")
    axes = figure.add_subplot()
    names = list(summary["benchmarks"])
    width = 0.8 / len(names)
    for index, (name, color) in enumerate(zip(names, _colors(summary), strict=True)):
        found = summary["benchmarks"][name]
        counts = list(found["per_problem_correct"].values())
        shares = [100 * counts.count(value) / len(counts) for value in range(found["n"] + 1)]
        places = [value + (index - (len(names) - 1) / 2) * width for value in range(found["n"] + 1)]
        axes.bar(places, shares, width, color=color, label=name)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_xlabel(f"right responses of {summary['protocol']['n']}")
    axes.set_ylabel("problems, %")
    axes.grid(axis="y", alpha=0.3)
    axes.set_axisbelow(True)
    figure.legend(loc="outside right center", fontsize=8)
    return figure


def _colors(summary: Mapping[str, Any]) -> list[Any]:
    palette = matplotlib.colormaps["tab10"].colors
    return [palette[index % len(palette)] for index in range(len(summary["benchmarks"]))]
