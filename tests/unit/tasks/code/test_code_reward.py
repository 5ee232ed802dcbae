"""The reward for programs: right ones score 1, broken ones 0, and none talks its way to a point."""

import json
import re

import pytest

from recipe.flowrl.common.project import PROJECT
from recipe.flowrl.sandbox import bubblewrap
from recipe.flowrl.sandbox.outcome import Limits, Outcome, SandboxError, Status
from recipe.flowrl.tasks.code import call_driver
from recipe.flowrl.tasks.code.cases import CallTests, StdinTests, parse_tests, same_output
from recipe.flowrl.tasks.code.reward import compute_score, last_program
from recipe.flowrl.tasks.code.values import encode, same_result

DATA = PROJECT / "tests" / "data"
LEETCODE = [json.loads(line) for line in (DATA / "leetcode_solutions.jsonl").read_text().splitlines()]
HUMANEVAL = [json.loads(line) for line in (DATA / "humanevalplus_mini.jsonl").read_text().splitlines()]
needs_bubblewrap = pytest.mark.skipif(bubblewrap.problem() is not None, reason=f"no sandbox: {bubblewrap.problem()}")

ADD = json.dumps([{"input": "1 2\n", "output": "3\n"}, {"input": "10 20\n", "output": "30\n"}])
DOUBLE = json.dumps([{"input": "4", "output": "8", "testtype": "functional", "metadata": {"func_name": "double"}}])


def answer(program: str) -> str:
    return f"I think:\n```python\n{program}\n```\nThat's it."


def score(program: str, tests: str, **options) -> dict[str, float]:
    return compute_score("taco", answer(program), tests, concurrency=1, **options)


@needs_bubblewrap
def test_real_accepted_solutions_score_one_and_broken_ones_zero() -> None:
    for row in LEETCODE:
        tests = json.dumps(row["tests"])
        assert score(row["solution"], tests)["score"] == 1.0, row["solution"]
        lines = row["solution"].rstrip().splitlines()
        last = max(index for index, line in enumerate(lines) if re.match(r" {8}(    )*return ", line))
        lines[last] = re.sub(r"return .*", "return 'broken'", lines[last])
        assert score("\n".join(lines), tests)["score"] == 0.0, lines[last]


@needs_bubblewrap
def test_humaneval_solutions_pass_tests_made_from_them() -> None:
    from recipe.flowrl.sandbox.bubblewrap import BubblewrapRunner

    for row in HUMANEVAL:
        cases = tuple(([encode(a) for a in args], {}, None) for args in row["base_input"] + row["plus_input"])
        right = row["prompt"] + row["canonical_solution"]
        outcome, results = CallTests(row["entry_point"], cases).results(right, BubblewrapRunner(), Limits())
        assert outcome.status == Status.FINISHED and len(results) == len(cases)
        filled = tuple((a, k, result) for (a, k, _), result in zip(cases, results, strict=True))
        tests = CallTests(row["entry_point"], filled, row["atol"]).to_json()
        assert score(right, tests)["score"] == 1.0
        assert score(row["prompt"] + "\n    return 'broken'\n", tests)["score"] == 0.0


@needs_bubblewrap
def test_stdin_programs() -> None:
    assert score("print(sum(map(int, input().split())))", ADD)["score"] == 1.0
    wrong = score("a, b = map(int, input().split()); print(a + b if a < 5 else 0)", ADD)
    assert wrong["score"] == 0.0 and wrong["passed"] == 0.5
    assert score("print(", ADD)["score"] == 0.0


@needs_bubblewrap
def test_tests_with_a_long_output_can_be_passed() -> None:
    long = json.dumps([{"input": "3000000", "output": "x" * 3_000_000}])
    assert score("print('x' * int(input()))", long)["score"] == 1.0
    called = CallTests("f", (([3_000_000], {}, "x" * 3_000_000),)).to_json()
    assert score("def f(n): return 'x' * n", called)["score"] == 1.0


@needs_bubblewrap
@pytest.mark.parametrize(
    "program",
    [
        "import sys\nsys.exit(0)",
        "import os\nos._exit(0)",
        "class Same:\n  def __eq__(self, other): return True\nclass Solution:\n  def double(self, x): return Same()",
        "class Solution:\n    def double(self, x): print(8); return None",
        "class Solution:\n    def double(self, x): import os; os.write(1, b'8\\n'); return 0",
        "import json\njson.dumps = lambda value: '8' * 9\nclass Solution:\n    def double(self, x): return 1",
        "import json\njson.dumps = lambda value: '[' * 10**5\nclass Solution:\n    def double(self, x): return 1",
        "class Solution:\n    def double(self, x): return '8'",
        "class Solution:\n    def double(self, x): return [8]",
    ],
)
def test_no_program_talks_its_way_to_a_point(program: str) -> None:
    assert score(program, DOUBLE)["score"] == 0.0
    assert score("class Solution:\n    def double(self, x): return 2 * x", DOUBLE)["score"] == 1.0


@needs_bubblewrap
def test_time_is_limited_for_each_test_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    from recipe.flowrl.tasks.code import reward as code

    monkeypatch.setitem(code._TEST_S, "taco", 1.0)
    for program, tests in (
        ("while True: pass", ADD),
        ("class Solution:\n  def double(self, x):\n    while 1: 0", DOUBLE),
    ):
        result = score(program, tests)
        assert result["timed_out"] == 1.0 and result["score"] == 0.0


def test_the_last_code_block_is_the_program() -> None:
    assert last_program("```python\na\n```\n text\n```py\nb\n```\n") == "b\n"
    assert last_program("```\na\n```") == "a\n"
    assert last_program("```python\na\n") is None
    assert last_program("no code") is None
    assert last_program("```python\n\n```") is None
    assert compute_score("taco", "no code", ADD, sandbox="unsafe_without_isolation")["extraction_failed"] == 1.0


def test_published_forms_of_tests_are_read() -> None:
    taco = {"inputs": ["1\n", ["2", "3"]], "outputs": ["1\n", ["5"]]}
    assert parse_tests(json.dumps(taco)) == StdinTests((("1\n", "1\n"), ("2\n3", "5")))
    called = {"fn_name": "f", "inputs": [[1, [2]]], "outputs": [[3]]}
    assert parse_tests(json.dumps(called)) == CallTests("f", (([1, [2]], {}, 3),))
    prime = [{"type": "function_call", "fn_name": "f", "input": [1], "output": 2}]
    assert parse_tests(json.dumps(prime)) == CallTests("f", (([1], {}, 2),))
    prime = [{"type": "stdin_stdout", "input": "1", "output": "2"}]
    assert parse_tests(json.dumps(prime)) == StdinTests((("1", "2"),))
    assert parse_tests(DOUBLE) == CallTests("Solution.double", (([4], {}, 8),))
    leetcode = "def check(candidate):\n    assert candidate(a = 1, b = list_node([2])) == -3\n\ncheck(Solution().f)"
    parsed = parse_tests(json.dumps({"functional": leetcode}))
    assert parsed == CallTests("Solution.f", (([], {"a": 1, "b": {"list_node": [2]}}, -3),))
    assert parse_tests(parsed.to_json()) == parsed


@pytest.mark.parametrize(
    "bad",
    [
        "",
        "[]",
        "{}",
        "3",
        '{"inputs": [], "outputs": []}',
        '{"inputs": ["1"], "outputs": []}',
        '[{"input": "1"}]',
        '[{"input": "1", "output": "2", "testtype": "functional"}]',
        '{"functional": "def check(candidate):\\n    assert open(\'x\') == 3\\n\\ncheck(f)"}',
        '{"functional": "def check(candidate):\\n    assert candidate(open(\'x\')) == 3\\n\\ncheck(f)"}',
        '{"functional": "not python"}',
    ],
)
def test_tests_that_cannot_be_read_are_refused(bad: str) -> None:
    with pytest.raises(ValueError):
        parse_tests(bad)


def test_the_longest_tests_are_kept_in_training_and_all_in_validation() -> None:
    cases = [{"input": "x" * length, "output": str(length)} for length in (3, 1, 5, 2)]
    tests = parse_tests(json.dumps(cases))
    assert tests.longest(2) == StdinTests((("xxx", "3"), ("xxxxx", "5")))
    calls = CallTests("f", (([1], {}, 1), ([1000], {}, 1), ([10], {}, 1)))
    assert [args for args, _, _ in calls.longest(2).cases] == [[1000], [10]]
    recorded = []

    class Recorder:
        def run(self, program: str, stdin: str, limits: Limits) -> Outcome:
            recorded.append(stdin)
            return Outcome(Status.FINISHED, str(len(stdin)))

    assert tests.longest(2).passed("", Recorder(), Limits())[0] == 2 and len(recorded) == 2
    assert tests.passed("", Recorder(), Limits())[0] == 4 and len(recorded) == 6


def test_a_failing_sandbox_is_counted_not_blamed(monkeypatch: pytest.MonkeyPatch) -> None:
    from recipe.flowrl.sandbox import choose

    class Broken:
        def run(self, program: str, stdin: str, limits: Limits) -> Outcome:
            raise SandboxError("no slot")

    monkeypatch.setattr("recipe.flowrl.tasks.code.reward.gate", lambda *options: choose.Gate(Broken(), 1))
    result = score("print(3)", ADD)
    assert result["grader_failed"] == 1.0 and result["score"] == 0.0


@pytest.mark.parametrize(
    ("expected", "given", "same"),
    [
        ("3\n", "3", True),
        ("1 2\n3\n", "1 2 \n3\n\n", True),
        ("0.5", "0.5000001", True),
        ("0.5", "0.51", False),
        ("1.0", "nan", False),
        ("3", "3.0", False),
        ("YES", "Yes", False),
        ("1 2", "1", False),
        ("1", "1 2", False),
        ("", "", True),
    ],
)
def test_outputs_are_compared_word_by_word(expected: str, given: str, same: bool) -> None:
    assert same_output(expected, given) is same


@pytest.mark.parametrize(
    ("expected", "given", "same"),
    [
        ([1, (2, 3)], [1, [2, 3]], True),
        ({1: 2, 3: 4}, {3: 4, 1: 2}, True),
        ({1, 2}, {2, 1}, True),
        ({1, 2}, [1, 2], False),
        (0.1 + 0.2, 0.3, True),
        (0.3, 0.31, False),
        (1, True, True),
        ("1", 1, False),
        (None, 0, False),
        (float("inf"), float("inf"), True),
        ([1, 2], [2, 1], False),
    ],
)
def test_results_are_compared_as_values(expected: object, given: object, same: bool) -> None:
    assert same_result(encode(expected), call_driver.encode(given)) is same


def test_values_survive_the_way_into_the_sandbox() -> None:
    for value in ([1, (2, {3: {4}})], {"a": [None, True, 1.5]}, float("inf"), 1 + 2j, ((),), "", 7**5000):
        assert call_driver.decode(json.loads(json.dumps(encode(value)))) == value
    tree = call_driver.decode({"tree_node": [1, None, 2, 3]})
    assert call_driver.encode(tree) == {"tree_node": [1, None, 2, 3]}
    assert call_driver.encode(-(7**5000)) == encode(-(7**5000)) != encode(7**5000)
    assert call_driver.encode(call_driver.decode({"list_node": [1, 2]})) == {"list_node": [1, 2]}
    with pytest.raises(ValueError, match="type object"):
        encode(object())


def test_a_run_without_a_sandbox_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    from test_configs import composed

    from recipe.flowrl.common.errors import UserError
    from recipe.flowrl.preflight.reward import check_reward
    from recipe.flowrl.sandbox import choose

    monkeypatch.setattr(bubblewrap, "problem", lambda: "bwrap isn't installed")
    choose.gate.cache_clear()
    row = {"data_source": "taco", "reward_model": {"ground_truth": ADD}, "extra_info": {"split": "train"}}
    rows = {"taco": ("train.parquet, row 0", lambda: row)}
    with pytest.raises(UserError, match="^no sandbox for the model's programs: bwrap isn't installed"):
        check_reward(composed("reward=code"), rows, None)
    check_reward(composed("reward=code", "reward.sandbox_fusion.url=http://127.0.0.1:9"), rows, None)
    choose.gate.cache_clear()
