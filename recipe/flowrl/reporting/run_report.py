"""Writes ``report.html`` into a run directory: one file that needs nothing else, neither network nor other files.

Prompts and generations are untrusted text. Jinja escapes everything that is not drawn here, and the page's own
Content-Security-Policy allows no request at all and no script but the one whose hash it names.
"""

import base64
import hashlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from recipe.flowrl.common.files import write_text
from recipe.flowrl.common.terminal import printable
from recipe.flowrl.reporting import names
from recipe.flowrl.reporting.catalogue import exist_per_puzzle, phases, sections
from recipe.flowrl.reporting.figures import number, percent, thin
from recipe.flowrl.reporting.run_records import Puzzle, Run, Series, load_run

_TEMPLATES = Path(__file__).parent / "templates"
_PUZZLES_SHOWN = 6
_TEXT_LIMIT = 1200


@dataclass(frozen=True)
class Headline:
    """A big number: its value at the end, and the value it started from."""

    title: str
    value: str
    detail: str
    start: str = ""


def write_report(run_dir: str | Path, out: Path | None = None) -> Path:
    """Write ``out``, by default ``run_dir/report.html``, and return its path; an older one is replaced in one step.

    Raises:
        ValueError: ``run_dir`` is not the directory of a run (see `load.load_run`).
    """
    run = load_run(run_dir)
    path = out or run.path / "report.html"
    write_text(path, render(run))
    return path


def render(run: Run) -> str:
    """The report as HTML."""
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        finalize=_printable,
        undefined=StrictUndefined,
        trim_blocks=True,
    )
    environment.filters |= {"number": number, "percent": percent, "shorten": shorten}
    script = (_TEMPLATES / "report.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return environment.get_template("report.html.j2").render(
        run=run,
        title=f"{_algorithm(run)} · {run.record.get('experiment') or run.path.resolve().name}",
        status=_status(run),
        facts=_facts(run),
        headlines=_headlines(run),
        sections=sections(run),
        phases=_phase_table(run),
        comparison=_comparison(run),
        metrics=_metric_table(run),
        config=run.config_text,
        base_policy={k: v for k, v in run.base_policy.items() if isinstance(v, str | int | float)},
        written=datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
        script=Markup(script),
        style=Markup((_TEMPLATES / "report.css").read_text(encoding="utf-8")),
        script_hash=digest,
    )


def shorten(text: str, limit: int = _TEXT_LIMIT) -> str:
    """``text`` without its middle part where it is longer than ``limit``."""
    if len(text) <= limit:
        return text
    return f"{text[: limit // 2]}\n[… {len(text) - limit:,} characters left out …]\n{text[-limit // 2 :]}"


def _printable(value: Any) -> Any:
    """Applied to all that the template prints: control characters and lone surrogates become visible."""
    if isinstance(value, str) and not isinstance(value, Markup):
        return printable(value)
    return value


def duration(seconds: float) -> str:
    """Seconds as ``1 h 02 min``, ``3 min 05 s`` or ``12.3 s``."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def _algorithm(run: Run) -> str:
    return {"flowrl": "FlowRL", "grpo": "GRPO", "reinforce_plus_plus": "REINFORCE++"}.get(run.algo, run.algo)


def _status(run: Run) -> tuple[str, str]:
    """(CSS class, words) for how the run ended."""
    code = run.record.get("exit_status")
    if code == 0:
        return "good", "finished"
    if code is not None:
        return "bad", f"failed, exit status {code}"
    return ("good", "finished") if run.when("finished") else ("open", "no end recorded")


def _facts(run: Run) -> list[tuple[str, str]]:
    """What ran, as (name, value); what is unknown is left out."""
    started, seconds = run.when("started"), run.duration
    steps, total = run.metrics.steps[-1], run.setting("trainer.total_training_steps")
    attempts = run.record.get("attempts")
    attempts = len(attempts) if isinstance(attempts, list) else attempts
    size = (run.setting("data.train_batch_size"), run.setting("actor_rollout_ref.rollout.n"))
    ranks = (run.setting("trainer.nnodes"), run.setting("trainer.n_gpus_per_node"))
    facts = [
        ("Model", _short(run.setting("actor_rollout_ref.model.path"))),
        ("Data", _short(run.setting("data.train_files"))),
        ("Batch", f"{size[0]} prompts × {size[1]} responses" if all(size) else None),
        ("Ranks", f"{ranks[0]} × {ranks[1]}" if all(ranks) else None),
        ("Learning rate", run.setting("actor_rollout_ref.actor.optim.lr")),
        ("Started", started.strftime("%Y-%m-%d %H:%M %Z") if started else None),
        ("Steps", f"{steps} of {total}" if total else steps),
        ("Duration", duration(seconds) if seconds else None),
        ("Attempts", attempts if attempts != 1 else None),
    ]
    return [(name, str(value)) for name, value in facts if value is not None]


def _short(paths: Any) -> str | None:
    """The last two parts of a path (a hub's ``organisation/model`` has no more); the folded config has it whole."""
    if paths is None:
        return None
    return ", ".join("/".join(Path(str(path)).parts[-2:]) for path in (paths if isinstance(paths, list) else [paths]))


def _headlines(run: Run) -> list[Headline]:
    """The final numbers against the first."""
    exist = exist_per_puzzle(run)
    solve = _validated(run, names.VAL_SOLVE_RATE, "Solve rate", percent) or _trained(
        run, names.SOLVE_RATE, "Solve rate", percent
    )
    distinct = _validated(run, names.VAL_DISTINCT, "Distinct solutions per puzzle", "{:.2f}".format) or _trained(
        run, names.DISTINCT, "Distinct solutions per puzzle", "{:.2f}".format
    )
    if distinct and exist and distinct.detail.startswith("validation"):
        distinct = Headline(distinct.title, distinct.value, f"of {exist:.2f} that exist", distinct.start)
    coverage = _validated(run, names.VAL_COVERAGE, "Solution coverage", percent)
    reward = _trained(run, names.REWARD, "Training reward", number)
    return [headline for headline in (solve, distinct, coverage, reward, _agreement(run), _pace(run)) if headline]


def _validated(run: Run, pattern: str, title: str, show: Any) -> Headline | None:
    """First and last validation, mean over data sources."""
    found = run.metrics.match(pattern)
    if not found:
        return None
    series = [run.metrics[name] for name in found]
    last, first = (float(np.mean([s.values[i] for s in series])) for i in (-1, 0))
    samples = sorted({texts[1] for texts in found.values() if len(texts) > 1})
    detail = "validation" + (f", mean of {'/'.join(samples)}" if samples else "")
    detail += f", {len(found)} data sources" if len(found) > 1 else ""
    return Headline(title, show(last), detail, show(first) if max(map(len, series)) > 1 else "")


def _trained(run: Run, name: str, title: str, show: Any) -> Headline | None:
    """First and last steps of training."""
    if name not in run.metrics:
        return None
    series = run.metrics[name]
    detail = f"training, mean of {series.width} steps each" if series.width > 1 else "training"
    return Headline(title, show(series.end), detail, show(series.start) if len(series) > 1 else "")


def _agreement(run: Run) -> Headline | None:
    if names.PROBS_DIFF_MAX not in run.metrics:
        return None
    differences, of = run.metrics[names.PROBS_DIFF_MAX].values, "the run"
    if run.asynchronous:  # later data may be of earlier weights
        differences, of = differences[:1], "the first step"
    return Headline("Rollout vs trainer probability", f"{float(differences.max()):.1e}", f"largest difference of {of}")


def _pace(run: Run) -> Headline | None:
    if names.STEP_TIME not in run.metrics:
        return None
    typical = float(np.median(run.metrics[names.STEP_TIME].values))
    return Headline("Time per step", duration(typical), f"median of {len(run.metrics[names.STEP_TIME])} steps")


def _phase_table(run: Run) -> list[dict[str, Any]]:
    """Rows of the table of phases: total and share of the time, mean per step."""
    steps, parts = phases(run)
    totals = [float(part.seconds.sum()) for part in parts]
    return [
        {
            "label": part.label,
            "color": part.color,
            "total": duration(total),
            "share": total / sum(totals),
            "mean": f"{total / len(steps):.2f} s",
        }
        for part, total in zip(parts, totals, strict=True)
    ]


def _metric_table(run: Run) -> list[dict[str, Any]]:
    """Every metric with its first, last, smallest and largest value."""
    rows = []
    for name in run.metrics.names:
        values = run.metrics[name].values
        ends = {"first": values[0], "last": values[-1], "min": values.min(), "max": values.max()}
        spark = _sparkline(run.metrics[name])
        rows.append({"name": name, "count": len(values), "spark": spark} | {k: number(v) for k, v in ends.items()})
    return rows


def _sparkline(series: Series, width: int = 110, height: int = 20) -> str:
    """Points of an SVG polyline in a box of ``width`` by ``height``; empty for fewer than two points."""
    series = thin(series, limit=width // 2)
    if len(series) < 2:
        return ""
    x, y = series.steps - series.steps[0], series.values - series.values.min()
    x, y = x / x[-1] * width, (1 - y / (y.max() or 1)) * (height - 2) + 1
    return " ".join(f"{a:.0f},{b:.1f}" for a, b in zip(x, y, strict=True))


def _comparison(run: Run) -> list[dict[str, Any]]:
    """The same puzzles at the first and the last validation.

    Not the best ones: they are spread evenly over all puzzles, ordered by how well the last validation solved them.
    """
    if not run.first or not run.last:
        return []
    before = {p.key: p for p in run.first.puzzles} if run.first.step != run.last.step else {}
    shared = [p for p in run.last.puzzles if not before or p.key in before]
    ranked = sorted(shared, key=lambda p: (p.found, p.solved), reverse=True)
    picks = np.unique(np.linspace(0, len(ranked) - 1, min(_PUZZLES_SHOWN, len(ranked))).round().astype(int))
    chosen = [ranked[index] for index in picks]
    count = run.last.names_solutions
    result = []
    for puzzle in chosen:
        sides = [(run.first.step, before[puzzle.key])] if before else []
        sides.append((run.last.step, puzzle))
        result.append({"puzzle": puzzle, "sides": [_side(step, side, count) for step, side in sides]})
    return result


def _side(step: int, puzzle: Puzzle, count: bool) -> dict[str, Any]:
    """One puzzle at one validation; equal outputs are shown once, correct ones first, the most frequent ones first."""
    times = Counter((s.output.strip() or "(empty)", s.correct, s.solution) for s in puzzle.samples)
    ordered = sorted(times.items(), key=lambda item: (not item[0][1], -item[1]))
    numbers = _numbering(solution for (_, correct, solution), _ in ordered if correct and solution)
    answers = [
        {"output": output, "correct": correct, "times": n, "number": numbers.get(solution) if correct else None}
        for (output, correct, solution), n in ordered
    ]
    return {
        "step": step,
        "answers": answers,
        "solved": puzzle.solved,
        "samples": len(puzzle.samples),
        "found": puzzle.found if count else None,
        "exist": puzzle.exist,
    }


def _numbering(solutions: Iterable[str | None]) -> dict[str | None, int]:
    """1, 2, … for the distinct solutions, in order."""
    return {solution: index for index, solution in enumerate(dict.fromkeys(solutions), start=1)}
