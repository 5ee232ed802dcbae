"""Tests of programming tasks: read from the forms in which data sets publish them, and applied to a program."""

import ast
import io
import json
import re
import tokenize
from dataclasses import dataclass, field, replace
from decimal import Decimal
from functools import lru_cache
from pathlib import Path
from typing import Any

from recipe.flowrl.common.syntax import parse_python
from recipe.flowrl.sandbox.outcome import Limits, Outcome, Runner, Status
from recipe.flowrl.tasks.code.values import encode, same_result

_DRIVER = Path(__file__).with_name("call_driver.py")
_PREAMBLE = (
    "import bisect, collections, copy, datetime, functools, heapq, itertools, math, operator, random, re, string, sys\n"
    "from bisect import *\nfrom collections import *\nfrom functools import *\nfrom heapq import *\n"
    "from itertools import *\nfrom math import *\nfrom operator import *\nfrom string import *\n"
    "from typing import *\ninf = float('inf')\ndel pow\n"  # of math and operator, which hide the built-in one
)
"""What LeetCode's judge has imported before a solution; its tasks rely on it."""
_FLOAT_TOLERANCE = 1e-6
_LEETCODE = "Solution."
"""Its tasks ask for a class of this name."""
_LEETCODE_TOLERANCE = 1e-5 * (1 + 1e-9)
"""Its judge's for floats, of which it prints five decimals; an answer that is off by just so much isn't lost to binary
fractions."""
_LONGEST_DECIMAL = 4000
"""Digits of an integer that Python reads in decimal."""


@dataclass(frozen=True)
class StdinTests:
    """Inputs and expected outputs of a whole program."""

    cases: tuple[tuple[str, str], ...]

    def longest(self, count: int) -> "StdinTests":
        """The ``count`` cases with the longest inputs, in their order."""
        chosen = sorted(range(len(self.cases)), key=lambda index: -len(self.cases[index][0]))[:count]
        return StdinTests(tuple(self.cases[index] for index in sorted(chosen)))

    def passed(self, program: str, runner: Runner, limits: Limits) -> tuple[int, Status]:
        """Run the cases until one fails; returns how many passed, and how the last run ended."""
        status = Status.FINISHED
        for number, (stdin, expected) in enumerate(self.cases):
            outcome = runner.run(program, stdin, _room_for(len(expected), limits))
            status = outcome.status
            if status != Status.FINISHED or not same_output(expected, outcome.stdout):
                return number, status
        return len(self.cases), status

    def __len__(self) -> int:
        return len(self.cases)


@dataclass(frozen=True)
class CallTests:
    """Arguments and expected results, encoded by :func:`recipe.flowrl.tasks.code.values.encode`, of a function."""

    function: str
    cases: tuple[tuple[list[Any], dict[str, Any], Any], ...]
    tolerance: float = 0.0
    maybe_bare: bool = field(default=False, compare=False)
    """All results came as lists of one. Whether these are TACO's wrapping, which is taken off here, or the results
    themselves can't be told: its own judge takes either, and so does this one, if it is the same for all cases."""

    def longest(self, count: int) -> "CallTests":
        """The ``count`` cases with the longest arguments, in their order."""
        lengths = [len(json.dumps(case[:2])) for case in self.cases]
        chosen = sorted(range(len(self.cases)), key=lambda index: -lengths[index])[:count]
        return replace(self, cases=tuple(self.cases[index] for index in sorted(chosen)))

    def passed(self, program: str, runner: Runner, limits: Limits) -> tuple[int, Status]:
        """Make all calls in one run; returns how many of the first ones passed, and how the run ended."""
        count, length = len(self.cases), sum(len(json.dumps(expected)) + 1 for _, _, expected in self.cases)
        whole = replace(limits, wall_s=limits.wall_s * count, silence_s=limits.wall_s, cpu_s=limits.cpu_s * count)
        outcome = runner.run(_driver(), self._task(program), _room_for(length, whole))
        lines = outcome.stdout.split("\n")
        tolerance = max(self.tolerance, _LEETCODE_TOLERANCE if self.function.startswith(_LEETCODE) else 0.0)
        forms = [[result for _, _, result in self.cases]]
        if self.maybe_bare:
            forms.append([[result] for result in forms[0]])
        return max(_matching(lines, results, tolerance) for results in forms), outcome.status

    def results(self, program: str, runner: Runner, limits: Limits) -> tuple[Outcome, list[Any]]:
        """What ``program`` returns for each case: for data sets that give a right program instead of results.

        Raises:
            ValueError: the sandbox's output isn't JSON.
        """
        outcome = runner.run(_driver(), self._task(program), limits)
        return outcome, [json.loads(line) for line in outcome.stdout.splitlines()]

    def to_json(self) -> str:
        """As ``ground_truth``; :func:`parse_tests` reads it."""
        told = {"function": self.function, "calls": self.cases, "tolerance": self.tolerance}
        return json.dumps({**told, "maybe_bare": True} if self.maybe_bare else told)

    def _task(self, program: str) -> str:
        calls = [[args, kwargs] for args, kwargs, _ in self.cases]
        return json.dumps({"preamble": _PREAMBLE, "program": program, "function": self.function, "calls": calls})

    def __len__(self) -> int:
        return len(self.cases)


@lru_cache(maxsize=64)  # the tests of a task may take megabytes
def parse_tests(ground_truth: str) -> StdinTests | CallTests:
    """The tests in ``ground_truth``: JSON in one of the published forms.

    - a list of ``{input, output}``, with ``testtype: functional`` and ``metadata.func_name`` (LiveCodeBench), or
      ``type: function_call`` and ``fn_name`` (PrimeIntellect), for function calls;
    - ``{inputs, outputs}``, with ``fn_name`` for function calls (TACO, code_contests);
    - ``{functional: "def check(candidate): ..."}`` (LeetCode): its assertions are read, never run;
    - ``{function, calls, tolerance}``: :meth:`CallTests.to_json`.

    Raises:
        ValueError: none of these, or no test in it.
    """
    try:
        data = read_json(ground_truth)
        tests = _from_list(data) if isinstance(data, list) else _from_dict(data)
    except (LookupError, TypeError, AttributeError, SyntaxError, RecursionError) as error:
        raise ValueError(f"tests that can't be read: {type(error).__name__}: {error}") from error
    if not len(tests):
        raise ValueError("there is no test")
    return tests


def same_output(expected: str, given: str) -> bool:
    """Whether a program printed the expected: the same words; numbers with a decimal point up to 1e-6."""
    want, got = expected.split(), given.split()
    return want == got or (len(want) == len(got) and all(map(_same_word, want, got)))


def _room_for(length: int, limits: Limits) -> Limits:
    """The limits, with room for twice the output that is expected."""
    return replace(limits, output_bytes=max(limits.output_bytes, 2 * length))


def _same_word(want: str, got: str) -> bool:
    if want == got:
        return True
    if "." not in want or len(got) > 64:
        return False
    try:
        return abs(float(want) - float(got)) <= _FLOAT_TOLERANCE * max(1.0, abs(float(want)))
    except ValueError:
        return False


def _matching(lines: list[str], results: list[Any], tolerance: float) -> int:
    """How many of the first lines are the expected results."""
    passed = 0
    for line, expected in zip(lines, results, strict=False):
        if not _line_is(line, expected, tolerance):
            break
        passed += 1
    return passed


def _line_is(line: str, expected: Any, tolerance: float) -> bool:
    try:
        return same_result(expected, json.loads(line), tolerance)
    except (ValueError, RecursionError, OverflowError):
        return False


def _from_list(items: list[dict[str, Any]]) -> StdinTests | CallTests:
    calls = [item for item in items if item.get("testtype") == "functional" or item.get("type") == "function_call"]
    if not calls:
        return StdinTests(tuple((_text(item["input"]), _text(item["output"])) for item in items))
    first = calls[0]
    name = first.get("fn_name") or (first.get("metadata") or {}).get("func_name")
    if not name:
        raise ValueError("tests by function call without the function's name (fn_name or metadata.func_name)")
    if first.get("testtype") == "functional":  # one argument a line
        cases = [([read_json(a) for a in i["input"].split("\n") if a.strip()], read_json(i["output"])) for i in calls]
        return _calls(f"{_LEETCODE}{name}", cases)
    return _unwrapped(name, [_call(item["input"], item["output"]) for item in calls])


def _from_dict(data: dict[str, Any]) -> StdinTests | CallTests:
    if "functional" in data:
        return _from_assertions(data["functional"])
    if "calls" in data:
        calls = tuple(map(tuple, data["calls"]))
        return CallTests(data["function"], calls, data["tolerance"], data.get("maybe_bare", False))
    pairs = list(zip(data["inputs"], data["outputs"], strict=True))
    if data.get("fn_name"):
        return _unwrapped(data["fn_name"], pairs)
    return StdinTests(tuple((_text(stdin), _text(stdout)) for stdin, stdout in pairs))


def _calls(function: str, cases: list[tuple[list[Any], Any]]) -> CallTests:
    return CallTests(function, tuple(([encode(a) for a in args], {}, encode(result)) for args, result in cases))


def _unwrapped(function: str, cases: list[tuple[list[Any], Any]]) -> CallTests:
    """The tests of a set that wraps each result in a list of one, in some of its problems."""
    if all(isinstance(result, list) and len(result) == 1 for _, result in cases):
        return replace(_calls(function, [(args, result[0]) for args, result in cases]), maybe_bare=True)
    return _calls(function, cases)


def _call(args: Any, result: Any) -> tuple[list[Any], Any]:
    """Arguments and result of one call: values, or both as JSON. The result of arguments that are values is a value."""
    if not isinstance(args, str):
        return args, result
    try:
        return read_json(args), read_json(result) if isinstance(result, str) else result
    except ValueError:
        return read_json(args), result


def _from_assertions(source: str) -> CallTests:
    """Read ``assert candidate(a=1) == 2``, also with LeetCode's list and tree helpers; nothing of it is run."""
    tree = parse_python(_hexadecimal(source))
    functions = [node.args[0] for node in ast.walk(tree) if isinstance(node, ast.Call) and _name(node) == "check"]
    function = ast.unparse(functions[-1]).replace("()", "")
    cases = [_assertion(node.test) for node in ast.walk(tree) if isinstance(node, ast.Assert)]
    return CallTests(function, tuple(cases))


def _hexadecimal(source: str) -> str:
    """The source, with integers in hexadecimal that Python doesn't read in decimal."""
    if not re.search(rf"\d{{{_LONGEST_DECIMAL}}}", source):
        return source
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    shown = [
        (t.type, hex(_integer(t.string)) if len(t.string) > _LONGEST_DECIMAL and t.string.isdigit() else t.string)
        for t in tokens
    ]
    return tokenize.untokenize(shown)


def _assertion(test: ast.expr) -> tuple[list[Any], dict[str, Any], Any]:
    if isinstance(test, ast.Compare) and len(test.ops) == 1 and isinstance(test.ops[0], ast.Eq):
        call, expected = test.left, test.comparators[0]
    elif isinstance(test, ast.Call) and _name(test) in ("is_same_list", "is_same_tree"):
        call, expected = test.args
    else:
        raise ValueError(f"an assertion that isn't an equation: {ast.unparse(test)[:80]}")
    if not isinstance(call, ast.Call) or _name(call) != "candidate":
        raise ValueError(f"an assertion that doesn't call the candidate: {ast.unparse(test)[:80]}")
    keywords = {keyword.arg: _literal(keyword.value) for keyword in call.keywords}
    return [_literal(argument) for argument in call.args], keywords, _literal(expected)


def _literal(node: ast.expr) -> Any:
    """A literal, or a linked list or tree of literals, encoded."""
    if isinstance(node, ast.Call) and _name(node) in ("list_node", "tree_node"):
        items = encode(ast.literal_eval(node.args[0]))
        return {_name(node): items} if items else None
    return encode(ast.literal_eval(node))


def _name(call: ast.Call) -> str:
    return getattr(call.func, "id", "")


def _text(value: Any) -> str:
    """A program's input or output: text, or a list of lines. Lines end as on the sites that run programs on Linux."""
    text = "\n".join(map(str, value)) if isinstance(value, list) else str(value)
    return text.replace("\r\n", "\n")


def read_json(text: str) -> Any:
    """``json.loads``, for integers of any length."""
    return json.loads(text, parse_int=_integer)


def _integer(digits: str) -> int:
    """Of any length: Python's own conversion refuses long ones."""
    return int(digits) if len(digits) <= _LONGEST_DECIMAL else int(Decimal(digits))


@lru_cache(maxsize=1)
def _driver() -> str:
    return _DRIVER.read_text()
