"""Rows of mathematics data sets as tasks."""

import json
import math
import re
from collections.abc import Mapping
from typing import Any

from recipe.flowrl.tasks import fields
from recipe.flowrl.tasks.math.answers import last_box
from recipe.flowrl.tasks.task import Malformed, Task

# DAPO-Math-17k's wording (arXiv 2503.14476), which the paper trains and the published rule grades with.
_BEFORE = (
    "Solve the following math problem step by step. The last line of your response should be of the form Answer: "
    "$Answer (without quotes) where $Answer is the answer to the problem.\n\n"
)
_AFTER = '\n\nRemember to put your answer on its own line after "Answer:".'

_PROBLEM_FIELDS = ("problem", "question", "Problem", "Question")
_ANSWER_FIELDS = ("final_answer", "answer", "Answer")


def math_task(row: Mapping[str, Any]) -> Task:
    """A row with a problem and an answer under any of the usual names, or a row in verl's schema.

    Several acceptable answers are kept as a JSON list; an answer that lists several values stays one.

    Raises:
        Malformed: there is no problem, or no answer.
    """
    text = _problem(row)
    answers = list(dict.fromkeys(filter(None, map(_normal, _answers(row)))))
    if not answers:
        raise Malformed("no answer")
    truth = answers[0] if len(answers) == 1 else json.dumps(answers)
    return Task(text, _BEFORE + text + _AFTER, truth, tolerance=_tolerance(row))


def _problem(row: Mapping[str, Any]) -> str:
    asked = fields.question(row, _PROBLEM_FIELDS)
    if not isinstance(row.get("prompt"), list):
        asked = "\n".join(filter(None, [fields.text(row, "context"), asked]))  # OlympiadBench's
    asked = asked.removeprefix(_BEFORE.strip()).removesuffix(_AFTER.strip()).strip()
    if not asked:
        raise Malformed("no problem text")
    return asked


def _answers(row: Mapping[str, Any]) -> list[str]:
    """The references: verl's, else those of the first field that has any, else the box that ends the solution."""
    found = fields.references(fields.ground_truth(row), "reward_model.ground_truth")
    for name in _ANSWER_FIELDS:
        found = found or fields.references(row.get(name), name)
    if not found and isinstance(row.get("solution"), str):  # MATH and Minerva
        box = last_box(row["solution"])
        found = fields.references(box[1] if box else None, "solution")
    # GSM8K: after the working
    return [item.rpartition("####")[2].replace(",", "") if "####" in item else item for item in found]


def _normal(answer: str) -> str:
    """``answer`` without dollars around it; integers as such: ``033`` and ``33.0`` are written ``33``."""
    answer = answer.strip()
    if re.fullmatch(r"\$[^$]*\$", answer):
        answer = answer[1:-1].strip()
    match = re.fullmatch(r"(-?)0*(\d+)(?:\.0+)?", answer)
    return "0" if match and match.group(2) == "0" else match.group(1) + match.group(2) if match else answer


def _tolerance(row: Mapping[str, Any]) -> float:
    try:
        (text,) = fields.references(row.get("error"), "error") or ["0"]
        tolerance = float(text)
    except ValueError as error:  # a list of several, or words
        raise Malformed("error: a tolerance that is no number") from error
    if not 0 <= tolerance < math.inf:
        raise Malformed("error: a tolerance that is no number")
    return tolerance
