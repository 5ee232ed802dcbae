"""The algebra of Countdown expressions against brute force and against OEIS A140606."""

import ast
import operator
import random
import subprocess
import sys
from collections.abc import Callable
from fractions import Fraction
from itertools import permutations, product

import pytest

from recipe.flowrl.tasks.countdown import gym
from recipe.flowrl.tasks.countdown.expressions import (
    MAX_EXPRESSION_CHARS,
    canonical_form,
    enumerate_solutions,
    solutions_by_value,
)

Tree = int | tuple["Tree", str, "Tree"]
OPERATORS: dict[str, Callable[[Fraction, Fraction], Fraction]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": operator.truediv,
}
SYMBOLS = {ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/"}


def text(tree: Tree) -> str:
    """Fully parenthesised."""
    return str(tree) if isinstance(tree, int) else f"({text(tree[0])}{tree[1]}{text(tree[2])})"


def value(expression: str, substitutes: dict[int, Fraction] | None = None) -> Fraction:
    """Evaluated on the syntax tree, some numbers replaced by others. Raises ZeroDivisionError."""

    def walk(node: ast.expr) -> Fraction:
        if isinstance(node, ast.Constant):
            return (substitutes or {}).get(node.value, Fraction(node.value))
        if isinstance(node, ast.UnaryOp):
            return -walk(node.operand)
        return OPERATORS[SYMBOLS[type(node.op)]](walk(node.left), walk(node.right))

    return walk(ast.parse(expression, mode="eval").body)


def random_tree(numbers: list[int], draw: random.Random) -> Tree:
    if len(numbers) == 1:
        return numbers[0]
    cut = draw.randrange(1, len(numbers))
    return random_tree(numbers[:cut], draw), draw.choice("+-*/"), random_tree(numbers[cut:], draw)


def rewritten(tree: Tree, draw: random.Random) -> Tree:
    """The same solution, written otherwise: at each node, with probability one half, one of the allowed steps."""
    if isinstance(tree, int):
        return tree
    a, op, b = rewritten(tree[0], draw), tree[1], rewritten(tree[2], draw)
    if draw.random() < 0.5:
        return a, op, b
    match a, op, b:
        case a, ("+" | "*"), b if draw.random() < 0.5:
            return b, op, a
        case (p, "-", q), ("*" | "/"), (r, "-", s):
            return (q, "-", p), op, (s, "-", r)
        case a, "+", (p, "*", (q, "-", r)):
            return a, "-", (p, "*", (r, "-", q))
        case a, ("+" | "-"), (p, ("+" | "-") as inner, q):
            return (a, op, p), inner if op == "+" else "-+"[inner == "-"], q
        case a, ("*" | "/"), (p, ("*" | "/") as inner, q):
            return (a, op, p), inner if op == "*" else "/*"[inner == "/"], q
    return a, op, b


@pytest.mark.parametrize(
    ("numbers", "classes"), [((7,), 1), ((7, 31), 6), ((7, 31, 101), 68), ((7, 31, 101, 977), 1170)]
)
def test_as_many_solutions_differ_as_oeis_a140606_says(numbers: tuple[int, ...], classes: int) -> None:
    assert sum(map(len, solutions_by_value(numbers).values())) == classes


def test_different_forms_are_different_functions_of_the_numbers() -> None:
    forms = [form for forms in solutions_by_value((7, 31, 101)).values() for form in forms]
    elsewhere = {7: Fraction(1009, 3), 31: Fraction(13, 7), 101: Fraction(499, 11)}
    assert len({value(form, elsewhere) for form in forms}) == len(forms)


def test_rewriting_keeps_form_and_value() -> None:
    draw = random.Random(0)
    compared = 0
    for _ in range(400):
        tree = random_tree([draw.randint(1, 9) for _ in range(5)], draw)
        form, other = canonical_form(text(tree)), tree
        for _ in range(4):
            other = rewritten(other, draw)
        assert canonical_form(text(other)) == form, (text(tree), text(other))
        if form is None:
            with pytest.raises(ZeroDivisionError):
                value(text(tree))
        else:
            assert canonical_form(form) == form
            assert value(form) == value(text(tree))
            compared += other != tree
    assert compared > 200


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("2*2", "2+2"),
        ("5*1", "5/1"),
        ("6-2*3", "2*3-6"),
        ("8/2/2", "8/(2/2)"),
        ("4-(3-1)", "4-3-1"),
        ("5+(4-3-1)*2", "5-(4-3-1)*2"),
    ],
)
def test_not_the_same_solution(one: str, other: str) -> None:
    assert canonical_form(one) != canonical_form(other)


@pytest.mark.parametrize("expression", ["5+(3-3)*2", "5-(3-3)*2", "2*(3-3)+5", " ( 5 - 2 * ( 3 - 3 ) ) "])
def test_the_sign_of_a_difference_of_equals_is_free(expression: str) -> None:
    assert canonical_form(expression) == "5+2*(3-3)"


NOT_EXPRESSIONS = ["", " ", "3+", "3 5", "3+x", "2**3", "2* *3", "7//2", "7/ /2", "1.5+2", "1e3", "0x10", "007", "1_0"]
NOT_EXPRESSIONS += ["1,2", "()", "3/0", "4/(2-2)", "len(3)", "3==3", "٣+٤", "3+5=8", "3;4", "3\n+4"]
NOT_EXPRESSIONS += ["(" * 64 + "1" + ")" * 63, "1+" * MAX_EXPRESSION_CHARS + "1"]


@pytest.mark.parametrize("expression", NOT_EXPRESSIONS)
def test_anything_but_an_expression_has_no_form(expression: str) -> None:
    assert canonical_form(expression) is None


def test_parentheses_may_be_as_deep_as_the_limit_allows() -> None:
    depth = (MAX_EXPRESSION_CHARS - 1) // 2
    assert canonical_form("(" * depth + "7" + ")" * depth) == "7"


def test_the_solver_finds_all_that_brute_force_finds() -> None:
    draw = random.Random(2)
    solved = 0
    for _ in range(8):
        numbers = tuple(sorted(draw.randint(1, 9) for _ in range(3)))
        reached: dict[Fraction, set[str | None]] = {}
        for (a, b, c), p, q in product(set(permutations(numbers)), OPERATORS, OPERATORS):
            for expression in (f"({a}{p}{b}){q}{c}", f"{a}{p}({b}{q}{c})"):
                try:
                    reached.setdefault(value(expression), set()).add(canonical_form(expression))
                except ZeroDivisionError:
                    continue
        for target in range(1, 41):
            assert set(enumerate_solutions(numbers, target)) == reached.get(Fraction(target), set())
            solved += target in reached
    assert solved > 50


@pytest.mark.parametrize("numbers", [[], [0, 3], [-1, 3]])
def test_the_solver_refuses_numbers_below_one(numbers: list[int]) -> None:
    with pytest.raises(ValueError, match="numbers: need at least one, all >= 1"):
        enumerate_solutions(numbers, 3)


def test_reasoning_gym_leaves_no_stand_in_behind() -> None:
    assert gym.countdown_score("1+2", (1, 2), 3) == 1.0
    assert not [name for name in sys.modules if name.split(".")[0] == "reasoning_gym"]


def test_the_first_scores_may_be_asked_for_in_several_threads() -> None:
    """As verl's reward worker does; in a fresh interpreter, since the import happens once."""
    program = (
        "import sys; sys.setswitchinterval(1e-6)\n"
        "from concurrent.futures import ThreadPoolExecutor\n"
        "from recipe.flowrl.tasks.countdown import gym\n"
        "with ThreadPoolExecutor(16) as pool:\n"
        "    assert set(pool.map(lambda _: gym.countdown_score('1+2', (1, 2), 3), range(64))) == {1.0}\n"
    )
    finished = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert finished.returncode == 0, finished.stderr[-2000:]
