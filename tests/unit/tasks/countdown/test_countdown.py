"""Countdown: puzzles, the algebra of expressions, the reward."""

import ast
import json
import random
import time
from fractions import Fraction
from pathlib import Path

import pytest

from recipe.flowrl.tasks.countdown import gym
from recipe.flowrl.tasks.countdown.data import CountdownConfig, Puzzle, generate, write_dataset
from recipe.flowrl.tasks.countdown.expressions import canonical_form, enumerate_solutions, parse
from recipe.flowrl.tasks.countdown.reward import COUNTDOWN, compute_score

SMALL = CountdownConfig(train_size=20, test_size=10)
OPERATORS = {ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/"}


def random_expression(numbers: list[int], draw: random.Random) -> str:
    """A random tree over ``numbers``, every operation in parentheses."""
    if len(numbers) == 1:
        return str(numbers[0])
    cut = draw.randrange(1, len(numbers))
    left, right = random_expression(numbers[:cut], draw), random_expression(numbers[cut:], draw)
    return f"({left}{draw.choice('+-*/')}{right})"


def rewritten(node: ast.expr, draw: random.Random) -> str:
    """The same expression with sums and products commuted and regrouped at random."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    operator, left, right = OPERATORS[type(node.op)], node.left, node.right
    if operator in "+*" and draw.random() < 0.5:
        left, right = right, left
    if operator in "+*" and isinstance(right, ast.BinOp) and type(right.op) is type(node.op) and draw.random() < 0.5:
        first, second, third = (rewritten(part, draw) for part in (left, right.left, right.right))
        return f"(({first}{operator}{second}){operator}{third})"
    return f"({rewritten(left, draw)}{operator}{rewritten(right, draw)})"


def value(expression: str) -> Fraction | None:
    """By Python, on fractions."""
    text = "".join(f"Fraction({part})" if part.isdigit() else part for part in _tokens(expression))
    try:
        return eval(text, {"Fraction": Fraction})
    except ZeroDivisionError:
        return None


def _tokens(expression: str) -> list[str]:
    spaced = "".join(f" {char} " if char in "+-*/()" else char for char in expression)
    return spaced.split()


def test_canonical_form_does_not_see_rewrites() -> None:
    draw = random.Random(0)
    compared = 0
    for _ in range(400):
        expression = random_expression([draw.randint(1, 9) for _ in range(4)], draw)
        form = canonical_form(expression)
        assert (form is None) == (value(expression) is None)
        if form is not None:
            assert value(form) == value(expression), expression
            assert canonical_form(form) == form
            assert canonical_form(rewritten(ast.parse(expression, mode="eval").body, draw)) == form
            compared += 1
    assert compared > 300


def test_different_solutions_stay_different() -> None:
    assert canonical_form("2+2") != canonical_form("2*2")
    assert canonical_form("3*1") != canonical_form("3/1")
    assert canonical_form("(3+5)*2") != canonical_form("3+5*2")


def test_solver_finds_what_brute_force_finds() -> None:
    """Random expressions that hit a target are all in the list; everything in the list hits it, says reasoning-gym."""
    draw = random.Random(1)
    numbers, target = [2, 3, 4, 6], 6
    listed = set(enumerate_solutions(numbers, target))
    assert all(gym.countdown_score(solution, numbers, target) == 1.0 for solution in listed)
    hits = set()
    for _ in range(20000):
        order = draw.sample(numbers, len(numbers))
        expression = random_expression(order, draw)
        if value(expression) == target:
            hits.add(canonical_form(expression))
    assert len(hits) > 10
    assert hits <= listed


def test_puzzles_are_distinct_and_have_several_solutions(tmp_path: Path) -> None:
    paths = write_dataset(tmp_path, SMALL)
    train, test = COUNTDOWN.read(paths["train"]), COUNTDOWN.read(paths["test"])
    assert (len(train), len(test)) == (20, 10)
    assert len({(p.numbers, p.target) for p in train + test}) == 30
    assert all(p.n_solutions == len(p.solutions()) >= SMALL.min_solutions for p in train + test)
    assert list(generate(SMALL)) == test + train, "the same configuration gives the same puzzles"
    assert not list(tmp_path.glob(".*")), "no temporary file is left"


def test_impossible_configurations_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="numbers=5"):
        CountdownConfig(numbers=5)
    with pytest.raises(ValueError, match="only .* puzzles"):
        write_dataset(tmp_path, CountdownConfig(numbers=2, max_value=2, min_solutions=1, train_size=90, test_size=10))
    assert not list(tmp_path.iterdir())


PUZZLE = Puzzle((2, 3, 4, 6), 6, 30)


def score(answer: str) -> dict:
    return compute_score("countdown", answer, PUZZLE.ground_truth)


@pytest.mark.parametrize("answer", ["(4-3)*6*2-6+0", "6*(4-3)/2*2"])
def test_wrong_numbers_are_rejected(answer: str) -> None:
    assert score(answer)["score"] == 0.0


@pytest.mark.parametrize("solution", PUZZLE.solutions()[:10])
def test_solutions_are_accepted(solution: str) -> None:
    result = score(f" {solution}<|im_end|>\n")
    assert result == {"score": 1.0, "acc": 1.0, "solution": canonical_form(solution), "n_solutions": 30}


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "6",
        "2+3+4+6",  # wrong value
        "6*(4-3)",  # a number is missing
        "6*(4-3)*2/2",  # a number twice
        "the answer is 6+4-3-2+1",
        "6+2+4-3-3=6",
        "6/(3-3)+2+4",
        "9**9**9**9",
        "10**10000000",
        "(" * 5000 + "6" + ")" * 5000,
        "__import__('os').system('true')",
        "6+2-(4-3)" * 1000,
        "٦+٢",
    ],
)
def test_anything_else_is_wrong_and_costs_little(answer: str) -> None:
    started = time.perf_counter()
    assert score(answer) == {"score": 0.0, "acc": 0.0, "solution": "", "n_solutions": 30}
    assert time.perf_counter() - started < 10


def test_a_broken_ground_truth_is_an_error() -> None:
    with pytest.raises(ValueError, match="ground_truth"):
        compute_score("countdown", "1+1", json.dumps({"numbers": [1, 1]}))


def test_parse_never_raises_on_text() -> None:
    draw = random.Random(2)
    for _ in range(2000):
        parse("".join(draw.choice("0123456789+-*/() ") for _ in range(draw.randrange(30))))
