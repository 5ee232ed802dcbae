"""Rows of mathematics data sets as tasks."""

import json
import re
from collections.abc import Mapping
from typing import Any

from recipe.flowrl.data.task import Malformed, Task
from recipe.flowrl.rewards.answers import last_box

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
    answers = [_normal(answer) for answer in _answers(row)]
    answers = list(dict.fromkeys(answer for answer in answers if answer))
    if not answers:
        raise Malformed("no answer")
    truth = answers[0] if len(answers) == 1 else json.dumps(answers)
    return Task(text, _BEFORE + text + _AFTER, truth, tolerance=_tolerance(row))


def _problem(row: Mapping[str, Any]) -> str:
    if isinstance(row.get("prompt"), list):
        text = next((turn["content"] for turn in row["prompt"] if turn["role"] == "user"), "")
    else:
        text = next((row[name] for name in _PROBLEM_FIELDS if row.get(name)), "")
        text = "\n".join(filter(None, [row.get("context"), text]))  # OlympiadBench's
    text = str(text).strip().removeprefix(_BEFORE.strip()).removesuffix(_AFTER.strip()).strip()
    if not text:
        raise Malformed("no problem text")
    return text


def _answers(row: Mapping[str, Any]) -> list[str]:
    if row.get("reward_model"):
        value = row["reward_model"].get("ground_truth")
    else:
        value = next((row[name] for name in _ANSWER_FIELDS if row.get(name) is not None), None)
    if value is None and isinstance(row.get("solution"), str):  # MATH and Minerva: at the end of the solution
        box = last_box(row["solution"])
        value = box[1] if box else None
    if value is None:
        return []
    if isinstance(value, str) and "####" in value:  # GSM8K: after the working
        value = value.rpartition("####")[2].strip().replace(",", "")
    return [str(item) for item in value] if isinstance(value, list | tuple) else [str(value)]


def _normal(answer: str) -> str:
    """``answer`` without dollars around it; integers as such: ``033`` and ``33.0`` are written ``33``."""
    answer = answer.strip()
    if re.fullmatch(r"\$[^$]*\$", answer):
        answer = answer[1:-1].strip()
    match = re.fullmatch(r"(-?)0*(\d+)(?:\.0+)?", answer)
    return match.group(1) + match.group(2) if match else answer


def _tolerance(row: Mapping[str, Any]) -> float:
    try:
        return float(row.get("error") or 0.0)
    except ValueError as error:
        raise Malformed("a tolerance that is no number") from error
