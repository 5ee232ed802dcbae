"""Rows of programming data sets as tasks."""

import json
import re
from collections.abc import Mapping
from typing import Any

from recipe.flowrl.sandbox.outcome import Limits, Runner, Status
from recipe.flowrl.tasks import fields
from recipe.flowrl.tasks.code.cases import CallTests, parse_tests, read_json
from recipe.flowrl.tasks.code.values import encode
from recipe.flowrl.tasks.task import Malformed, Task, is_unicode

STDIN = (
    "Write a Python program that reads from standard input and writes to standard output. Put the whole program in a "
    "```python code block at the end of your answer.\n\n"
)
"""Stands before a problem whose tests are inputs and outputs of a program."""
_FUNCTION = (
    "Write Python code for the problem below, with this interface. Put all of it in a ```python code block at the end "
    "of your answer.\n\n"
)
_REFERENCE = Limits(wall_s=120.0, cpu_s=120, memory_bytes=4 * 2**30, output_bytes=256 * 2**20)
"""For a data set's own solutions, which are run on all tests at once."""


def code_task(row: Mapping[str, Any]) -> Task:
    """A row of DeepCoder's preparations, LiveCodeBench or Codeforces, or one in verl's schema: a problem and its tests.

    Raises:
        Malformed: there is no problem, or there are no tests that can be read.
    """
    text = fields.question(row, ("problem", "question"))
    tests = fields.ground_truth(row)
    in_verls_schema = tests is not None
    starter = fields.text(row, "starter_code")
    try:
        truth = _named(tests if in_verls_schema else row.get("tests"), row.get("metadata"), starter)
        parsed = parse_tests(truth)
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise Malformed(str(error) if isinstance(error, ValueError) else "tests that can't be read") from error
    if in_verls_schema:
        return Task(text, text, truth)
    if starter:
        return Task(text, f"{_FUNCTION}{text}\n\n```python\n{starter}\n```", truth)
    return Task(text, (text if isinstance(parsed, CallTests) else STDIN + text), truth)


def humaneval_task(row: Mapping[str, Any], runner: Runner) -> Task:
    """A row of HumanEval+: its right results are what its own solution returns, run in the sandbox.

    Raises:
        Malformed: a field is missing, or the solution fails on a test.
    """
    try:
        inputs = [*row["base_input"], *(row["plus_input"] or [])]
        cases = tuple(([encode(argument) for argument in arguments], {}, None) for arguments in inputs)
        unanswered = CallTests(row["entry_point"], cases, float(row["atol"] or 0.0))
        text = fields.text(row, "prompt")
        right = row["prompt"] + row["canonical_solution"]
        for name in (right, row["entry_point"]):
            name.encode()
    except (KeyError, TypeError, AttributeError, ValueError, RecursionError) as error:
        raise Malformed(f"a field that can't be read: {type(error).__name__}: {error}") from error
    outcome, results = unanswered.results(right, runner, _REFERENCE)
    if outcome.status != Status.FINISHED or len(results) != len(cases):
        raise Malformed(f"its own solution {outcome.status}")
    answered = tuple((args, kwargs, result) for (args, kwargs, _), result in zip(cases, results, strict=True))
    tests = CallTests(unanswered.function, answered, unanswered.tolerance)
    return Task(text, f"{_FUNCTION}```python\n{text}\n```", tests.to_json())


def _named(tests: Any, metadata: Any, starter: str) -> str:
    """The tests as JSON text; the function's name, if it stands elsewhere in the row, with them.

    Raises:
        Malformed: tests that aren't JSON; ValueError, TypeError, AttributeError: JSON of another form.
    """
    try:
        data = read_json(tests) if isinstance(tests, str) else tests
        metadata = json.loads(metadata) if isinstance(metadata, str) and metadata else metadata or {}
    except ValueError as error:
        raise Malformed("tests that aren't JSON") from error
    if isinstance(data, list) and data and isinstance(data[0], dict) and data[0].get("testtype") == "functional":
        found = re.search(r"class Solution.*?def\s+(\w+)\s*\(\s*self", starter, re.DOTALL)
        name = (isinstance(metadata, dict) and metadata.get("func_name")) or (found.group(1) if found else None)
        data = [{"metadata": {"func_name": name}, **item} if name else item for item in data]
        for item in data:
            if name and not (item.get("metadata") or {}).get("func_name"):
                item["metadata"] = {"func_name": name}
        tests = data
    written = tests if isinstance(tests, str) else json.dumps(data)
    escaped = "\\ud" in written.lower() and not is_unicode(json.dumps(data, ensure_ascii=False))
    if escaped or not is_unicode(written):
        raise Malformed("tests with a lone surrogate, which is no Unicode")
    return written
