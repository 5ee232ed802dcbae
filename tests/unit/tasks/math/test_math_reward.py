"""The mathematics reward: what is found in a response, what counts as equal, and that nothing can hang it."""

import json
import time
from collections.abc import Iterator

import pytest

from recipe.flowrl.common.project import PROJECT
from recipe.flowrl.tasks.math.answers import LONGEST_ANSWER, final_answer
from recipe.flowrl.tasks.math.equivalence import equal
from recipe.flowrl.tasks.math.reward import compute_score, references
from recipe.flowrl.tasks.math.worker_pool import WorkerPool

DATA = PROJECT / "tests" / "data"
ANSWERS = [json.loads(line)["answer"] for line in (DATA / "math_answers.jsonl").read_text().splitlines()]
EQUIVALENCE = "recipe.flowrl.tasks.math.equivalence"

# response, what it answers
RESPONSES = [
    (r"so \boxed{12}.", "12"),
    (r"\boxed{1} no, \boxed{\frac{a}{\sqrt{b}}}", r"\frac{a}{\sqrt{b}}"),
    (r"the set \boxed{\{1,2\}}", r"\{1,2\}"),
    (r"\fbox{3}", "3"),
    (r"\boxed {3}", "3"),
    ("Answer: 12", "12"),
    ("Answer: 12.", "12"),
    ("**Answer:** 12", "12"),
    ("**Answer**: 12", "12"),
    ("**Answer: 12**", "12"),
    ("### Final Answer: $x = 3$.", "x = 3"),
    ("Answer:\n\n$$5$$", "5"),
    ("Answer:\n\\[\n5\n\\]\nDone", "5"),
    ("Answer: $\\boxed{7}$", "7"),
    (r"Answer: \(2\sqrt{3}\)", r"2\sqrt{3}"),
    (r"Answer: 2\sqrt{3}", r"2\sqrt{3}"),
    ("Answer: (1, 2)", "(1, 2)"),
    (r"Answer: \text{Monday}", r"\text{Monday}"),
    (r"Answer: \$32", "32"),
    ("Answer: 3.5", "3.5"),
    ("answer: 5\n\\boxed{6}", "6"),
    ("\\boxed{6}\nAnswer: 5", "5"),
    ("\\boxed{6} and then \\boxed{7", "6"),
    ("The final answer is $5$. I hope it is correct.", "5"),
    ("Hence the answer is 0.5", "0.5"),
]
NO_ANSWER = [
    "",
    "12",
    "no idea",
    "Answer:",
    "Answer: ",
    r"\boxed{}",
    r"\boxed{3",
    "\\boxed{" + "1" * (LONGEST_ANSWER + 1) + "}",
]

SAME = [
    ("1/2", "0.5"),
    (r"\frac12", r"\dfrac{1}{2}"),
    (r"2\sqrt{3}", r"\sqrt{12}"),
    ("p - q", "-q+p"),
    (r"6\pi", r"6 \pi"),
    ("1,234", "1234"),
    (r"11,\! 111", "11111"),
    ("27.0", "27"),
    ("x=5", "5"),
    ("1,3,5", "5, 1, 3"),
    ("$69$,$84$", r"\{84, 69\}"),
    ("1,2", "2 and 1"),
    (r"1 \text{ or } 2", "2, 1"),
    ("(3,0),(-3,1)", "(-3, 1), (3, 0)"),
    (r"336^\circ", "336"),
    (r"10 \text{ cm}", "10"),
    (r"\text{(A)}", "A"),
    (r"\text{Monday}", "monday"),
    ("3e8", r"3 \times 10^8"),
    ("1e-11", r"10^{-11}"),
    ("(x+1)^2", "x^2+2x+1"),
    (r"17.5\%", "17.5"),
]
NEAR_MISSES = [
    ("5", "-5"),
    ("5", "5.01"),
    ("5", "50"),
    ("0.5", "0.05"),
    ("5", "5, 6"),
    ("5, 6", "5"),
    ("1,3,5", "1,3,6"),
    ("1,3,5", "1,3,3"),
    ("1,1,2", "1,2"),
    ("5", "5 or 6"),
    ("(1,2)", "(2,1)"),
    ("(1,2)", "[1,2]"),
    ("(0,1)", "(0,1]"),
    ("(1,2)", "1,2"),
    ("(3,0),(-3,1)", "(3,1),(-3,0)"),
    ("p-q", "q-p"),
    ("x^2", "x^3"),
    ("x<2", r"x \le 2"),
    ("x<2", "x>2"),
    (r"\frac{1}{3}", "0.33"),
    (r"\frac{2}{3}", r"\frac{3}{2}"),
    (r"2\sqrt{3}", r"3\sqrt{2}"),
    (r"6\pi", "18.85"),
    ("2^{10}", "2^{11}"),
    ("1234", "1,235"),
    (r"\text{even}", r"\text{odd}"),
    (r"\text{tea}", "eat"),
    ("A", "B"),
    ("3e8", r"3 \times 10^9"),
    (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{pmatrix}2\\1\end{pmatrix}"),
    ("f(x)=x", "f(x)=-x"),
    ("40_9", "41_9"),
    ("5", "the answer"),
    ("5", r"\infty"),
]
HOSTILE = ["9^{9^{9^{9}}}", "10000000!", "(" * 200 + "1" + ")" * 200, r"\frac{" * 100, r"\int_0^1 x^{x^{x^{x}}} dx"]


@pytest.fixture(scope="module")
def pool() -> Iterator[WorkerPool]:
    pool = WorkerPool(EQUIVALENCE, size=1, limit_s=20.0)
    yield pool
    pool.close()


def same(pool: WorkerPool, reference: str, answer: str, tolerance: float | None = None) -> bool:
    return pool.ask({"references": [reference], "answer": answer, "tolerance": tolerance})["equal"]


@pytest.mark.parametrize(("response", "answer"), RESPONSES)
def test_the_final_answer_is_found(response: str, answer: str) -> None:
    assert final_answer(response) == answer


@pytest.mark.parametrize("response", NO_ANSWER)
def test_where_there_is_no_answer_the_extraction_fails(response: str) -> None:
    assert final_answer(response) is None
    assert compute_score("math", response, "3")["extraction_failed"] == 1.0


def test_extraction_is_fast_on_what_a_model_may_repeat() -> None:
    started = time.monotonic()
    for text in ("\\boxed{", "Answer:", "answer is ", "Answer: \\[", "**", "$$"):
        final_answer(text * 20_000)
    assert time.monotonic() - started < 10


@pytest.mark.parametrize(("reference", "answer"), SAME)
def test_the_same_value_in_another_form_is_right(pool: WorkerPool, reference: str, answer: str) -> None:
    assert same(pool, reference, answer)


@pytest.mark.parametrize(("reference", "answer"), NEAR_MISSES)
def test_a_near_miss_is_wrong(pool: WorkerPool, reference: str, answer: str) -> None:
    assert not same(pool, reference, answer)


@pytest.mark.parametrize("form", [r"so \boxed{%s}", "Thus\nAnswer: %s."])
def test_reference_answers_are_accepted_as_themselves(form: str) -> None:
    accepted = [compute_score("math", form % answer, answer)["acc"] for answer in ANSWERS]
    assert len(accepted) == 250 and sum(accepted) >= 0.995 * len(accepted)


def test_reference_answers_are_not_accepted_for_one_another() -> None:
    distinct = sorted({answer.strip("$ ") for answer in ANSWERS if not answer.strip("$").isdigit()})[:60]
    wrong = [
        (a, b) for a, b in zip(distinct, distinct[1:], strict=False) if compute_score("m", f"Answer: {b}", a)["acc"]
    ]
    assert len(wrong) <= 1, wrong


def test_any_of_several_alternatives_is_right() -> None:
    truth = json.dumps([r"\ln 2 + i\frac{\pi}{3}", "7"])
    assert compute_score("m", r"\boxed{7}", truth)["acc"] == 1.0
    assert compute_score("m", r"\boxed{8}", truth)["acc"] == 0.0
    assert references("[1, 2]") == ["[1, 2]"], "an interval is no list of alternatives"


def test_a_tolerance_is_a_largest_difference() -> None:
    assert equal(["4.2"], "4.25", 0.1) and not equal(["4.2"], "4.31", 0.1) and not equal(["4.2"], "4.25")
    assert compute_score("m", r"\boxed{4.25}", "4.2", {"split": "test", "tolerance": 0.1})["acc"] == 1.0


def test_the_published_rule_wants_an_answer_line_near_the_end() -> None:
    def score(text: str, **extra: str) -> dict[str, float]:
        return compute_score("math_dapo", text, "34", extra, rule="math_dapo")

    assert score("Answer: 34")["score"] == 1.0
    assert score("Answer: $34$")["score"] == 1.0
    for text in (r"\boxed{34}", "Answer: 35", "Answer: 34.", "Answer: 34" + " " * 400):
        assert score(text)["score"] == -1.0 and score(text)["acc"] == 0.0
    assert score(r"\boxed{34}")["extraction_failed"] == 1.0
    assert score(r"\boxed{34}", split="test")["score"] == 1.0, "validation is graded by math_verify"


def test_an_unknown_rule_is_refused() -> None:
    with pytest.raises(ValueError, match="math_verify or math_dapo"):
        compute_score("m", "x", "1", rule="strict")


def test_hostile_expressions_cost_no_more_than_the_limit() -> None:
    for answer in HOSTILE:
        started = time.monotonic()
        result = compute_score("m", f"Answer: {answer}", r"\sqrt{2}", workers=1, limit_s=1.0)
        assert result["acc"] == 0.0
        assert time.monotonic() - started < 15, f"{answer}: the limit is 1 s, a worker's start some more"
    assert compute_score("m", r"Answer: \frac{2}{\sqrt{2}}", r"\sqrt{2}", workers=1, limit_s=5.0)["acc"] == 1.0


def test_a_time_out_is_counted() -> None:
    slow = r"\boxed{\frac{999999!}{999998!}}"  # a million factors, modulo a prime
    result = compute_score("m", slow, r"\frac{999998}{1}", workers=1, limit_s=0.005)
    assert result["timed_out"] == 1.0 and result["score"] == result["grader_failed"] == 0.0


def test_failures_of_the_grader_are_a_metric() -> None:
    from recipe.flowrl.trainer import grading_metrics

    infos = [compute_score("m", text, "3") for text in (r"\boxed{3}", r"\boxed{4}", "none", "Answer:")]
    metrics = grading_metrics("train", [*infos, {"acc": 1.0}])
    assert metrics == {"train/extraction_failed": 0.5, "train/timed_out": 0.0, "train/grader_failed": 0.0}
