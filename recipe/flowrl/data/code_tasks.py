"""Rows of programming data sets as tasks."""

import json
import re
from collections.abc import Mapping
from typing import Any

from recipe.flowrl.data.task import Malformed, Task
from recipe.flowrl.rewards.code_tests import CallTests, parse_tests
from recipe.flowrl.rewards.values import encode
from recipe.flowrl.sandbox.outcome import Limits, Runner, Status

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
    if row.get("reward_model"):
        text = next((turn["content"] for turn in row["prompt"] if turn["role"] == "user"), "").strip()
        tests = row["reward_model"].get("ground_truth")
    else:
        text, tests = str(row.get("problem") or row.get("question") or "").strip(), row.get("tests")
    if not text:
        raise Malformed("no problem text")
    starter = str(row.get("starter_code") or "").strip()
    truth = _named(tests, row.get("metadata"), starter)
    try:
        parsed = parse_tests(truth)
    except ValueError as error:
        raise Malformed(str(error)) from error
    if row.get("reward_model"):
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
        right = row["prompt"] + row["canonical_solution"]
    except (KeyError, TypeError, ValueError) as error:
        raise Malformed(f"a field that can't be read: {type(error).__name__}: {error}") from error
    outcome, results = unanswered.results(right, runner, _REFERENCE)
    if outcome.status != Status.FINISHED or len(results) != len(cases):
        raise Malformed(f"its own solution {outcome.status}")
    answered = tuple((args, kwargs, result) for (args, kwargs, _), result in zip(cases, results, strict=True))
    tests = CallTests(unanswered.function, answered, unanswered.tolerance)
    text = row["prompt"].strip()
    return Task(text, f"{_FUNCTION}```python\n{text}\n```", tests.to_json())


def _named(tests: Any, metadata: Any, starter: str) -> str:
    """The tests as JSON text; the function's name, if it stands elsewhere in the row, with them."""
    try:
        data = json.loads(tests) if isinstance(tests, str) else tests
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
    return json.dumps(data)
