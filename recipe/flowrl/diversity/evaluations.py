"""Reads what ``recipe.flowrl.evaluate`` leaves: the protocol, the summary, every sample with its grade."""

import gzip
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recipe.flowrl.common.errors import UserError
from recipe.flowrl.common.foreign import MOST_BYTES, opened, read_text
from recipe.flowrl.evaluate.evaluate_options import SUITES

MATH, CODE, COUNTDOWN = "math", "code", "countdown"
_OF_SUITE = {"math": MATH, "code": CODE, "gsm8k": MATH, "countdown": COUNTDOWN}
KINDS = {benchmark: _OF_SUITE[suite] for suite, benchmarks in SUITES.items() for benchmark in benchmarks}
"""What an answer of each benchmark is."""
CORRECT, ALL = "correct", "all"
POPULATIONS = {CORRECT: "correct answers", ALL: "all answers"}
"""Whose diversity is measured."""


@dataclass(frozen=True)
class Response:
    """One sample: what was written, whether it is right, and the final answer that was found in it, if any.

    ``group``: equal for answers to a problem that the grader takes for equal; None where it doesn't say.
    """

    text: str
    correct: bool
    answer: str | None
    group: int | None = None


@dataclass(frozen=True)
class Samples:
    """All responses to one problem, by sample number."""

    problem: str
    prompt: str
    responses: tuple[Response, ...]

    def only(self, population: str) -> tuple[Response, ...]:
        """The responses of a population, one of :data:`POPULATIONS`."""
        return tuple(r for r in self.responses if r.correct) if population == CORRECT else self.responses


@dataclass(frozen=True)
class Evaluation:
    """An evaluation directory with its ``protocol`` and its ``benchmarks``, name -> summary."""

    directory: Path
    protocol: dict[str, Any]
    benchmarks: dict[str, dict[str, Any]]

    def samples(self, benchmark: str) -> list[Samples]:
        """The samples of a benchmark, problem by problem, in the file's order.

        Raises:
            UserError: a file is missing or damaged, or a sample has no grade.
        """
        folder = self.directory / benchmark
        grades = {(row["problem"], row["sample"]): row for row in _rows(folder / "grades.jsonl.gz", ("correct",))}
        prompts: dict[str, str] = {}
        responses: dict[str, dict[int, Response]] = {}
        for row in _rows(folder / "samples.jsonl.gz", ("prompt", "response")):
            key = row["problem"], row["sample"]
            if key not in grades:
                raise UserError(
                    f"{folder}: problem {key[0]}, sample {key[1]} has no grade: "
                    "continue the evaluation with the command that started it"
                )
            prompts.setdefault(row["problem"], row["prompt"])
            grade = grades[key]
            response = Response(row["response"], bool(grade["correct"]), grade.get("answer"), grade.get("group"))
            responses.setdefault(row["problem"], {})[row["sample"]] = response
        return [
            Samples(problem, prompt, tuple(response for _, response in sorted(responses[problem].items())))
            for problem, prompt in prompts.items()
        ]


def read_evaluation(directory: Path) -> Evaluation:
    """Read ``directory``. Raises UserError if it isn't a finished evaluation."""
    summary = read_json(directory / "summary.json", "it is written when an evaluation ends: continue the evaluation")
    if not isinstance(summary.get("protocol"), dict) or not isinstance(summary.get("benchmarks"), dict):
        raise UserError(f"{directory / 'summary.json'}: no protocol and benchmarks in it; is this an evaluation?")
    return Evaluation(directory, summary["protocol"], summary["benchmarks"])


def read_json(path: Path, hint: str) -> dict[str, Any]:
    """The object in ``path``. Raises UserError, with ``hint``, if there is none."""
    try:
        content = json.loads(read_text(path))
    except FileNotFoundError:
        raise UserError(f"{path}: not there; {hint}") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: can't be read ({error})") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected a JSON object")
    return content


def kind_of(benchmark: str) -> str:
    """What an answer of ``benchmark`` is. Raises UserError for an unknown one."""
    if benchmark not in KINDS:
        raise UserError(f"benchmark {benchmark!r}: unknown; there are {', '.join(KINDS)}")
    return KINDS[benchmark]


_TYPES = {"problem": str, "sample": int, "prompt": str, "response": str, "correct": bool}


def _rows(path: Path, needed: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    """The lines of ``path``: objects with a ``problem``, a ``sample`` and what else is ``needed``."""
    number = 0
    try:
        with gzip.open(opened(path)) as lines:
            for number, line in enumerate(iter(lambda: lines.readline(MOST_BYTES), b""), start=1):
                row = json.loads(line)
                for name in ("problem", "sample", *needed):
                    if not isinstance(row, dict) or not isinstance(row.get(name), _TYPES[name]):
                        raise UserError(f"{path}, line {number}: no {name} of type {_TYPES[name].__name__} in it")
                yield row
    except FileNotFoundError:
        raise UserError(f"{path}: not there; continue the evaluation with the command that started it") from None
    except (OSError, EOFError, ValueError, zlib.error, RecursionError) as error:
        raise UserError(f"{path}, after line {number}: can't be read ({error})") from None
