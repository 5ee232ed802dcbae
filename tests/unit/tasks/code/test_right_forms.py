"""Right programs in forms that graders miss, each beside a near miss that has to fail."""

import json
import string
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recipe.flowrl.sandbox import bubblewrap
from recipe.flowrl.sandbox.outcome import Limits, Outcome, Status
from recipe.flowrl.tasks.code.cases import CallTests, parse_tests
from recipe.flowrl.tasks.code.extraction import LONGEST_PROGRAM, last_program
from recipe.flowrl.tasks.code.reward import compute_score

needs_bubblewrap = pytest.mark.skipif(bubblewrap.problem() is not None, reason=f"no sandbox: {bubblewrap.problem()}")


def stdin_tests(*pairs: tuple[str, str]) -> list[dict[str, str]]:
    return [{"input": stdin, "output": stdout} for stdin, stdout in pairs]


def check(assertions: str, function: str) -> dict[str, str]:
    return {"functional": f"def check(candidate):\n    {assertions}\n\n\ncheck(Solution().{function})"}


def functional(name: str, *pairs: tuple[str, str]) -> list[dict[str, Any]]:
    tests = [{"input": args, "output": result, "testtype": "functional"} for args, result in pairs]
    return [{**test, "metadata": {"func_name": name}} for test in tests]


def method(line: str, head: str = "def f(self, *a):") -> str:
    return f"class Solution:\n    {head}\n        {line}"


LONG = "1" + "0" * 4499 + "7"  # which Python doesn't write
FORMS: dict[str, tuple[Any, str, str]] = {  # tests, a right program, a near miss
    "long integers, printed": (
        stdin_tests(("9000", f"{'9' * 9000}\n")),
        "print(10 ** int(input()) - 1)",
        "print(10 ** int(input()) - 2)",
    ),
    "long integers, read": (
        stdin_tests(("7" * 6000, "7")),
        "print(int(input()) % 10)",
        "print(int(input()) % 11)",
    ),
    "long integers as results": (
        {"fn_name": "f", "inputs": [[4500]], "outputs": [["LONG"]]},
        "def f(n): return 10**n + 7",
        "def f(n): return 10**n + 8",
    ),
    "long integers in assertions": (
        check(f"assert candidate(n = 4500) == {LONG}", "f"),
        method("return 10**a['n'] + 7", "def f(self, **a):"),
        method("return 10**a['n'] + 17", "def f(self, **a):"),
    ),
    "from __future__ in a class": (
        functional("f", ("4", "8")),
        "from __future__ import annotations\n" + method("return 2 * x", "def f(self, x: 'Later') -> int:"),
        "x = 1\nfrom __future__ import annotations\n" + method("return 2 * x", "def f(self, x):"),
    ),
    "from __future__ behind a docstring, with a data class": (
        {"fn_name": "f", "inputs": [[4]], "outputs": [[8]]},
        '"""About."""\nfrom __future__ import annotations\nfrom dataclasses import dataclass\n'
        "@dataclass\nclass P:\n    x: int\ndef f(x): return 2 * P(x).x",
        '"""About."""\nfrom __future__ import nonsense\ndef f(x): return 2 * x',
    ),
    "five decimals in assertions": (
        check("assert candidate(43, 9) == 4.77778", "f"),
        method("return a[0] / a[1]"),
        method("return a[0] / a[1] - 0.0001"),
    ),
    "five decimals in a list": (
        functional("f", ("[1, 2]\n3", "[0.33333, 0.66667]")),
        method("return [x / a[1] for x in a[0]]"),
        method("return [x / a[1] + 3e-5 for x in a[0]]"),
    ),
    "an integer isn't a decimal": (
        functional("f", ("3", "5")),
        method("return 5.0"),
        method("return 5.000001"),
    ),
    "class Solution with fn_name": (
        {"fn_name": "f", "inputs": [[1, 2], [5, 5]], "outputs": [[3], [10]]},
        method("return sum(a)"),
        "class Solutions:\n    def f(self, *a): return sum(a)",
    ),
    "fn_name with both": (
        {"fn_name": "f", "inputs": [[1]], "outputs": [[3]]},
        "def f(x): return 3\n" + method("return 4"),
        "def f(x): return 4\n" + method("return 3"),
    ),
    "results of one item among others": (
        {"fn_name": "f", "inputs": [[[1, 2]], [[2, 4]]], "outputs": [[2], [2, 4]]},
        "def f(a): return [x for x in a if x % 2 == 0]",
        "def f(a): return [x for x in a if x % 2 == 0] if len(a) > 9 else 2",
    ),
    "results of one item, wrapped": (
        {"fn_name": "f", "inputs": [[1], [2]], "outputs": [[[1]], [[2]]]},
        "def f(x): return [x]",
        "def f(x): return [x] if x == 1 else x",
    ),
    "results of one item, all bare": (
        {"fn_name": "f", "inputs": [[1], [2]], "outputs": [[1], [2]]},
        "def f(x): return [x]",
        "def f(x): return [x] if x == 1 else x",
    ),
    "function calls with wrapped results": (
        [{"type": "function_call", "fn_name": "f", "input": [i], "output": [i + 1]} for i in range(3)],
        "def f(x): return x + 1",
        "def f(x): return [x + 1, 0]",
    ),
    "text results": (
        [{"type": "function_call", "fn_name": "f", "input": ["abc"], "output": "cba"}],
        "def f(s): return s[::-1]",
        "def f(s): return [s[::-1]]",
    ),
    "text results that look like numbers": (
        [{"type": "function_call", "fn_name": "f", "input": ["12"], "output": "21"}],
        "def f(s): return s[::-1]",
        "def f(s): return int(s[::-1])",
    ),
    "calls that are JSON": (
        [{"type": "function_call", "fn_name": "f", "input": "[[1, 2]]", "output": "[2, 1]"}],
        "def f(a): return a[::-1]",
        "def f(a): return str(a[::-1])",
    ),
    "sortedcontainers": (
        stdin_tests(("3 1 2", "1 2 3")),
        "from sortedcontainers import SortedList\nprint(*SortedList(map(int, input().split())))",
        "from sortedcontainers import SortedList\nprint(*SortedList(map(int, input().split()))[1:])",
    ),
    "lines that end as on Windows": (
        stdin_tests(("ab\r\ncd\r\n", "ab|cd\r\n")),
        "import sys\nprint('|'.join(sys.stdin.buffer.read().decode().split('\\n')[:2]))",
        "import sys\nprint('|'.join(sys.stdin.buffer.read().decode().split('\\r\\n')[:2]))",
    ),
    "a carriage return within a line": (
        stdin_tests(("a\rb\n", "3")),
        "import sys\nprint(len(sys.stdin.buffer.readline()) - 1)",
        "print(len(input().split('\\r')[0]))",
    ),
    "a limit that is raised": (
        stdin_tests(("50000", "50000")),
        "import resource, sys\nresource.setrlimit(resource.RLIMIT_STACK, (-1, -1))\nsys.setrecursionlimit(10**6)\n"
        "def f(n): return n and 1 + f(n - 1)\nprint(f(int(input())))",
        "def f(n): return n and 1 + f(n - 1)\nprint(f(int(input())))",
    ),
}


@needs_bubblewrap
@pytest.mark.parametrize("form", FORMS)
def test_a_right_program_scores_and_its_near_miss_does_not(form: str) -> None:
    tests, right, wrong = FORMS[form]
    text = json.dumps(tests).replace('"LONG"', LONG)
    for program, expected in ((right, 1.0), (wrong, 0.0)):
        result = compute_score("taco", f"```python\n{program}\n```", text, concurrency=1)
        assert (result["score"], result["grader_failed"]) == (expected, 0.0)


def test_a_call_has_its_own_time_and_all_have_their_sum() -> None:
    asked: list[Limits] = []

    class Recorder:
        def run(self, program: str, stdin: str, limits: Limits) -> Outcome:
            asked.append(limits)
            return Outcome(Status.FINISHED, "1\n1\n1\n")

    CallTests("f", (([1], {}, 1),) * 3).passed("", Recorder(), Limits(wall_s=2.0, cpu_s=2))
    assert (asked[0].wall_s, asked[0].silence_s, asked[0].cpu_s) == (6.0, 2.0, 6)


@needs_bubblewrap
def test_an_answer_in_drops_is_no_answer() -> None:
    program = "import os, time\nfor i in range(99):\n  os.write(1, b'8')\n  time.sleep(0.3)"
    started = time.monotonic()
    outcome = bubblewrap.BubblewrapRunner().run(program, "", Limits(wall_s=30.0, silence_s=1.5))
    assert outcome.status == Status.TIMED_OUT and time.monotonic() - started < 10


def test_the_kind_of_results_survives_being_written() -> None:
    tests = parse_tests(json.dumps({"fn_name": "f", "inputs": [[1]], "outputs": [[2]]}))
    assert tests.maybe_bare and parse_tests(tests.to_json()).maybe_bare


# ---- extraction ----------------------------------------------------------------------------------------------------

RESPONSES = [
    ("1. Read.\n\n   ```python\n   n\n     m\n   ```\n", "n\n  m\n"),
    ("- ```python\n  a\n  ```", "a\n"),
    ("10) * ```py\n      a\n       b\n      ```", "a\n b\n"),
    ("\t```python\n\tif a:\n\t\tb\n\t```", "if a:\n    b\n"),
    ("> ```python\n> a\n>   b\n>\n> c\n> ```", "a\n  b\n\nc\n"),
    ("```python\n    a\n\n      b\n```", "a\n\n  b\n"),
    ("````python\na\n```\nb\n````", "a\n```\nb\n"),
    ("~~~python\na\n```\n~~~~", "a\n```\n"),
    ("````python\nbad\n```python\nok\n```", "ok\n"),
    ("~~~\nbad\n```python\nok\n```", "ok\n"),
    ("````\nbad\n```python\nok\n```", "ok\n"),
    ("```\nfirst\n```\n~~~\n```python\nok\n```", "ok\n"),
    ("```python\nbad\n\n```python\nok\n```", "ok\n"),
    ("<think>\n```python\nbad\n</think>\n\n```python\nok\n```", "ok\n"),
    ("<think>```\nbad\n</think>```python\nok\n```", "ok\n"),
    ("```python\r\na\r\n```\r\n", "a\n"),
    ("```Python 3\na\n```</answer>", "a\n"),
    ("```{.python .numbered}\na\n```", "a\n"),
    ("```solution\na\n```", "a\n"),
    ("```python\nok\n```\nwhich prints\n```text\n3\n```", "ok\n"),
    ("```python\nok\n```\nRun:\n```bash\npython x.py\n```\n", "ok\n"),
    ("```python\nfirst\n```\n```\nsecond\n```", "second\n"),
    ("```python\nok\n```\n```python\n\n```", "ok\n"),
    ("```python\nok\n```\n```python\nhalf", "ok\n"),
    ('```python\n"""\n    ```\n    x\n    ```\n"""\n```', '"""\n    ```\n    x\n    ```\n"""\n'),
    ("Use ```x``` here\n```python\na\n```", "a\n"),
    ("```python\nx = 'a\u2028b'\n```", "x = 'a\u2028b'\n"),
    # near misses
    ("```python\na\n~~~", None),
    ("````python\na\n```", None),
    ("``python\na\n``", None),
    ("```python\na\n        ```", None),
    ("```python\na\n``` and so on", None),
    ("text ```python\na\n```", None),
    ("```python\na\n</think>\n```", None),
    ("```\n```", None),
    (f"```python\n{'x' * LONGEST_PROGRAM}\n```", None),
]


@pytest.mark.parametrize(("response", "program"), RESPONSES)
def test_the_rule_of_extraction(response: str, program: str | None) -> None:
    assert last_program(response) == program


_LINES = st.lists(st.text(string.ascii_letters + " ()=:'\"#\t>-*.1", max_size=12), max_size=8)


@given(
    _LINES, _LINES, st.integers(3, 7), st.sampled_from("`~"), st.integers(0, 6), st.sampled_from(["", "python", "py"])
)
@settings(max_examples=300, deadline=None)
def test_a_program_is_found_however_it_is_fenced(
    before: list[str], lines: list[str], length: int, kind: str, indent: int, name: str
) -> None:
    program = "\n".join(["x = 1", *lines]) + "\n"
    fence, pad = kind * length, " " * indent
    block = "".join(f"{pad}{line}\n" for line in [fence + name, *program.splitlines(), fence])
    found = last_program("\n".join(before) + "\n" + block + "The end.")
    assert found is not None
    if "\t" not in program:
        assert found == program


@given(
    st.lists(
        st.sampled_from(["```", "````", "~~~", "python", "\n", " ", "    ", "> ", "- ", "x", "</think>", "<", "\t"])
    )
)
@settings(max_examples=500, deadline=None)
def test_no_text_breaks_the_extraction(parts: list[str]) -> None:
    program = last_program("".join(parts))
    assert program is None or program.strip()


HOSTILE = {
    "openings": "```python\n" * 100_000,
    "fences": "```\n" * 250_000,
    "one long fence": "`" * 10**6,
    "ever longer fences": "".join("`" * k + "py\n" for k in range(3, 1400)),
    "ever deeper fences": "".join(" " * k + "```python\n" for k in range(1400)),
    "quotations": "> " * 500_000 + "```",
    "list items": "- " * 500_000 + "```",
    "numbers": "1. " * 330_000 + "```",
    "blanks": " " * 10**6 + "```",
    "thoughts": "</think>" * 120_000,
    "mixed": "```python\n~~~\n````\n" * 50_000,
    "a long program": "```python\n" + "x = 1\n" * 160_000 + "```",
    "a program of blanks": "```python\n" + " \t" * 490_000 + "\n```",
    "an indented program": "```python\n" + "    x = 1\n" * 19_000 + "```",
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_megabyte_takes_no_time_that_grows_with_its_square(kind: str) -> None:
    started = time.thread_time()
    last_program(HOSTILE[kind])
    assert time.thread_time() - started < 10, "0.1 s, and a garbage collection of the tests' process; squared, minutes"
