"""The report of an exact study: accuracy against diversity at every step and every sampling temperature."""

import json
from pathlib import Path
from typing import Any

from matplotlib.colors import to_hex

from recipe.flowrl.common.errors import UserError
from recipe.flowrl.common.foreign import read_text
from recipe.flowrl.common.jsonl import JsonLines
from recipe.flowrl.compare.frontier_figures import (
    best_figure,
    level_figure,
    steps_figure,
    styles,
    temperature_figure,
    training_figure,
)
from recipe.flowrl.compare.frontier_tables import accuracy_levels, against_baseline, at_levels, end_table
from recipe.flowrl.compare.frontiers import Runs
from recipe.flowrl.reporting.study_page import Section, svg, write_page

_INTRO = (
    "{train_puzzles} training puzzles seen again and again, {puzzles} held-out ones; evaluated every {every} steps, "
    "{steps} steps at most, or until 1.1 effective solutions are left. Every figure is computed from the probabilities "
    "of all solutions of a puzzle, not from samples. Right: the probability of a "
    "solution. Effective solutions: exp of the entropy over the solutions of a right answer. Points and lines: means "
    "over seeds; bands and intervals: 95% over seeds (Student's t), on these puzzles and from this base policy; bands "
    "of two runs: from the one to the other; tables have both. What is unticked below is taken out of the figures."
)


def write_report(path: Path, out: Path | None = None) -> Path:
    """Draw the outcome of an exact study, ``STUDY.jsonl``, into ``out``, by default ``STUDY.html`` beside it.

    Returns:
        The page's path.

    Raises:
        UserError: the file isn't such an outcome, or holds no run.
    """
    facts, runs = load(path)
    sections = [
        Section(
            "At the same accuracy, stopped and sampled as is best",
            "Where an algorithm may choose the step at which it is stopped and the temperature at which it is sampled, "
            "the most diversity that it has at each accuracy. A line above another is more than sampling hotter or "
            "stopping earlier. The base policy may choose its temperature.",
            figure=svg(best_figure(runs)),
        ),
        Section(
            "Run by run",
            "The same at the highest accuracy of the tables: a dot a run that gets there, a row a system, those with "
            "the most solutions above.",
            figure=svg(level_figure(runs, max(accuracy_levels(runs).values()))),
        ),
        *against_baseline(runs),
        *at_levels(runs),
        Section(
            "Along training",
            "T = 1, from the base policy on the left; a mark every evaluation, bands over seeds. Up and to the right "
            "is better.",
            figure=svg(training_figure(runs)),
        ),
        Section(
            "Along the sampling temperature",
            "The policy at the end of each run, sampled colder and hotter; the mark is T = 1. The grey line is the "
            "base policy.",
            figure=svg(temperature_figure(runs)),
        ),
        Section("Step by step", "T = 1; bands over seeds.", figure=svg(steps_figure(runs))),
        end_table(runs),
    ]
    looks = [f"{style['linestyle']} {to_hex(style['color'])}" for style in styles(runs).values()]
    page, title = out or path.with_suffix(".html"), f"Comparison: {path.stem}"
    return write_page(page, title, _INTRO.format(**facts), sections, list(zip(runs, looks, strict=True)))


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


def is_exact_study(path: Path) -> bool:
    """Whether a file is the outcome of an exact study."""
    try:
        header = json.loads(read_text(path).partition("\n")[0])
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(header, dict) and header.keys() == {"study"}
