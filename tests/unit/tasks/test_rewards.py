"""The reward functions: what is right, near misses, text that means harm."""

import gc
import random
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from recipe.flowrl.tasks.arithmetic import reward as arithmetic
from recipe.flowrl.tasks.countdown import gym
from recipe.flowrl.tasks.countdown import reward as countdown
from recipe.flowrl.tasks.countdown.data import Puzzle, enumerate_solutions
from recipe.flowrl.tasks.countdown.expressions import parse

PUZZLE = Puzzle((3, 4, 5, 8), 24, len(enumerate_solutions([3, 4, 5, 8], 24)))

HOSTILE = [
    "9**9**9",
    "9" * 5000,
    "(" * 5000 + "3" + ")" * 5000,
    "-" * 100_000 + "3",
    "3" + "+3" * 50_000,
    "__import__('os').system('true')",
    "3*4*(5-(8-8))/0",
    "factorial(99999999)",
    "\x00",
    "\ud800",
    "١٢٣",
    "3,4" * 30_000,
    "1" * 10_000_000,
]


def score(response: str) -> dict:
    return countdown.compute_score("countdown", response, PUZZLE.ground_truth, {"index": 0})


@pytest.mark.parametrize("response", PUZZLE.solutions())
def test_every_solution_is_right_and_told_apart(response: str) -> None:
    assert score(response) == {"score": 1.0, "acc": 1.0, "solution": response, "n_solutions": PUZZLE.n_solutions}


@pytest.mark.parametrize(
    "response",
    ["(8-5+3)*4", "4*((3-5)+8)", " (8+3-5)*4 \n", "(8+3-5)*4<|im_end|>", "(3+8-5)*4<|im_end|>\n<|endoftext|>"],
)
def test_the_same_solution_written_otherwise_counts_as_one(response: str) -> None:
    assert score(response)["solution"] == "(8+3-5)*4"


@pytest.mark.parametrize(
    "response",
    [
        "8*3",  # numbers missing
        "8*3+4-4",  # one reused, one missing
        "8*3*(5-4)*1",  # a number that wasn't given
        "8*(5-3)+4+4",  # one reused
        "8+3+5+4",  # another value
        "83-54-5",  # digits joined
        "8*3*(5-4)=24",
        "24=8*3*(5-4)",
        "The answer is 8*3*(5-4)",
        "8*3*(5-4) 8*3*(5-4)",
        "8×3×(5-4)",
        "8*3**(5-4)",
        "8*3//(5-4)",
        "8*3*(5-4",
        "<|im_start|>8*3*(5-4)",
        "24",
        "",
    ],
)
def test_near_misses_are_wrong(response: str) -> None:
    assert score(response) == {"score": 0.0, "acc": 0.0, "solution": "", "n_solutions": PUZZLE.n_solutions}


def test_a_value_within_reasoning_gyms_tolerance_needs_the_numbers_too() -> None:
    assert gym.countdown_score("8*3*(5-4)", PUZZLE.numbers, 24) == 1.0
    assert 0 < gym.countdown_score("8*3", PUZZLE.numbers, 24) < 1.0  # which is why the score is thresholded


@pytest.mark.parametrize("response", HOSTILE, ids=range(len(HOSTILE)))
@pytest.mark.parametrize("reward", [countdown.compute_score, arithmetic.compute_score])
def test_hostile_text_is_wrong_and_cheap(reward, response: str) -> None:
    truth = PUZZLE.ground_truth if reward is countdown.compute_score else "7.5"
    start = time.process_time()
    assert reward("x", response, truth)["score"] == 0.0
    assert time.process_time() - start < 1.0


def test_any_text_can_be_scored() -> None:
    draw = random.Random(0)
    for _ in range(2000):
        response = "".join(draw.choices("0123456789+-*/()<|> .,=\n−é", k=draw.randrange(24)))
        assert score(response)["score"] in (0.0, 1.0)
        assert arithmetic.compute_score("x", response, "7")["score"] in (0.0, 1.0)


def test_scoring_takes_about_a_millisecond() -> None:
    responses = [*PUZZLE.solutions(), "8+3+5+4", "8*3", "not an expression"] * 20
    score(responses[0])  # imports the scorer
    start = time.process_time()
    for response in responses:
        score(response)
    assert (time.process_time() - start) / len(responses) < 5e-3


@pytest.mark.parametrize(
    "truth", ["", "24", "[]", "{}", '{"numbers": [3], "target": 3}', '{"numbers": 3, "target": 3, "n_solutions": 1}']
)
def test_a_ground_truth_that_is_none_is_refused(truth: str) -> None:  # fmt: skip
    with pytest.raises(ValueError, match="ground_truth must be a JSON object"):
        countdown.compute_score("countdown", "3", truth)


@pytest.mark.parametrize(
    ("response", "right"),
    [
        ("12", True),
        ("7 + 5 = 12.", True),
        ("Tom has 7+5=12 apples", True),
        ("12.0", True),
        ("**12**<|im_end|>", True),
        ("12 apples, not 11", False),
        ("112", False),
        ("-12", False),
        ("1,2", False),
        ("twelve", False),
        ("", False),
    ],
)
def test_the_last_number_is_the_answer(response: str, right: bool) -> None:
    expected = {"score": float(right), "acc": float(right), "solution": "12" if right else "", "n_solutions": 1.0}
    assert arithmetic.compute_score("arithmetic", response, "12", {"index": 0}) == expected


@pytest.mark.parametrize(
    ("text", "number"), [("1,234", 1234), ("3-4", 4), ("x = -4", -4), ("−4", -4), ("4.", 4), ("1.50", 1.5), ("-", None)]
)
def test_last_number(text: str, number: float | None) -> None:
    assert arithmetic.last_number(text) == number


@pytest.fixture
def collections_that_let_others_run() -> Iterator[None]:
    """Many of them, each with a pause in which other threads go on."""

    def pause(phase: str, info: dict) -> None:
        time.sleep(1e-5)

    threshold = gc.get_threshold()
    gc.callbacks.append(pause)
    gc.set_threshold(20)
    yield
    gc.set_threshold(*threshold)
    gc.callbacks.remove(pause)


def test_answers_read_in_several_threads_do_not_disturb_each_other(collections_that_let_others_run: None) -> None:
    """One in thousands of rollouts failed by CPython 3.11.7's parser, as this does without the lock."""
    for _ in range(40):
        with ThreadPoolExecutor(8) as pool:
            read = list(pool.map(lambda _: parse("((1+2)*(3-4))/(5+6)*(7-8)"), range(64)))
        assert len(set(read)) == 1 and read[0] is not None
