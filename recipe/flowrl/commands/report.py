"""Draws the report of what has been measured again."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from recipe.flowrl.common.command_line import Command, option
from recipe.flowrl.common.errors import UserError
from recipe.flowrl.common.foreign import read_text


@dataclass(frozen=True)
class Options:
    """What is drawn, and where."""

    results: Path = option(
        "A run's directory, an evaluation's, a study's (or its STUDY.json), a distribution's.", place="RESULTS"
    )
    out: Path | None = option(
        "The HTML file.", value=None, default="report.html in the directory; of STUDY.json, STUDY.html beside it"
    )


def run(options: Options) -> None:
    """Draw it, and print the path of each page."""
    for page in draw(options.results, options.out):
        print(page)


def draw(results: Path, out: Path | None) -> Iterator[Path]:
    """Draw what is in ``results``, and yield the path of each page.

    Raises:
        UserError: there is nothing to draw, or it is damaged.
    """
    if not results.exists():
        raise UserError(f"{results}: no such file or directory; give what a run, a study or an evaluation has left")
    studies = _studies(results)
    if out is not None and len(studies) > 1:
        names = ", ".join(path.name for path in studies)
        raise UserError(f"out={out}: {results} has {len(studies)} studies, {names}: name one of them")
    for path in studies or [results]:
        write = _write_study if studies else _writer(results)
        try:
            yield write(path, out)
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            # A run's reader says itself what is wrong; the others meet a file that isn't as it was written.
            reason = str(error) if str(path) in str(error) else f"{path} is damaged ({type(error).__name__}: {error})"
            raise UserError(reason) from error


def _studies(results: Path) -> list[Path]:
    """The outcomes of studies: the file ``results``, or those in this directory."""
    if results.is_dir():
        return [path for path in sorted(results.glob("*.json*")) if _is_study(path)]
    if not _is_study(results):
        raise UserError(f"{results} isn't the outcome of a study, the STUDY.json or STUDY.jsonl of compare")
    return [results]


def _is_study(path: Path) -> bool:
    if path.suffix == ".jsonl":
        from recipe.flowrl.compare.frontier_report import is_exact_study

        return is_exact_study(path)
    try:
        content = json.loads(read_text(path))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(content, dict) and {"study", "runs"} <= content.keys()


def _writer(directory: Path) -> Callable[[Path, Path | None], Path]:
    """What draws the report of a directory; a run's, if nothing says what it is."""
    if (directory / "protocol.json").exists() and (directory / "summary.json").exists():
        return _write_evaluation
    if not (directory / "metrics.jsonl").exists() and any(directory.glob("**/result.json")):
        from recipe.flowrl.distribution.exact_report import write_report
    else:
        from recipe.flowrl.reporting.run_report import write_report
    return write_report


def _write_study(path: Path, out: Path | None) -> Path:
    from recipe.flowrl.compare import frontier_report, study_report

    report = frontier_report if path.suffix == ".jsonl" else study_report
    return report.write_report(path, out)


def _write_evaluation(directory: Path, out: Path | None) -> Path:
    from recipe.flowrl.evaluate.evaluation_report import write_report

    return write_report(directory, json.loads(read_text(directory / "summary.json")), out)


COMMAND = Command(
    Options,
    run,
    examples=(
        "outputs/countdown_cpu/flowrl",
        "benchmarks/countdown/countdown.json",
        "benchmarks/distribution out=page.html",
    ),
    notes=(
        "A page is one file, and needs nothing else. train, evaluate, compare and distribution draw theirs themselves.",
    ),
)
