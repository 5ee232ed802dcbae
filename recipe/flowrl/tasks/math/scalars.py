"""Whether two scalar expressions are the same function, decided by bounded evaluation; nothing is expanded.

Rational expressions are compared by :mod:`.rational`. Everything else is evaluated by mpmath to a number of digits that
follows from the expression: beyond the ratio of the largest to the smallest value that arises anywhere in it, so that
nothing is lost beside something larger. What would take more than :data:`.rational.MAX_BITS` is undecided, and what is
undecided isn't equal.

Nodes are tuples: ``("num", Fraction)``, ``("var", name)``, ``("const", "pi" | "e" | "i")``, ``("degree",)``,
``("percent",)``, ``("pm", index, sign)``, ``("add", a, b, ...)``, ``("mul", a, b, ...)``, ``("div", a, b)``,
``("pow", base, exponent)``, ``("root", n, a)``, ``("fn", name, argument, ...)``, ``("unknown", name, argument, ...)``.
"""

import random
from collections.abc import Callable, Iterator
from fractions import Fraction
from itertools import pairwise, product
from typing import Any

from mpmath import mp

from recipe.flowrl.tasks.math.rational import (
    INTEGER_FUNCTIONS,
    MAX_BITS,
    Node,
    Undecided,
    exact,
    is_rational,
    number,
    same_rational,
    tags_of,
    variables,
)

_POINTS = 3
_MOST_MARKS, _MOST_SWEPT = 8, 4
_TRIES = 40
_MOST_POINT_BITS = 20_000
"""Precision at a point: where a function needs more, another point will do."""

_FIRST_BITS, _SECOND_BITS, _SPARE_BITS = 120, 240, 400
_GAMMA_BITS = 1_000
"""Largest precision of factorials and binomials of what isn't an integer: beyond it they take seconds."""

_GAMMA = ("factorial", "doublefactorial", "binom")
_TRIGONOMETRIC = ("sin", "cos", "tan", "cot", "sec", "csc")
_ANALYTIC = frozenset((*_TRIGONOMETRIC, "sinh", "cosh", "tanh", "coth", "sech", "csch", "exp", "ln", "logb"))
_OF_COMPLEX = ("conj", "re", "im", "arg")
FUNCTIONS: dict[str, Callable[..., Any]] = {
    **{name: getattr(mp, name) for name in (*_TRIGONOMETRIC, "sinh", "cosh", "tanh", "coth", "sech", "csch")},
    **{f"a{name}": getattr(mp, f"a{name}") for name in (*_TRIGONOMETRIC, "sinh", "cosh", "tanh")},
    "exp": mp.exp,
    "ln": mp.log,
    "logb": lambda base, value: mp.log(value) / mp.log(base),
    "abs": abs,
    "floor": mp.floor,
    "ceil": mp.ceil,
    "factorial": mp.factorial,
    "doublefactorial": mp.fac2,
    "binom": mp.binomial,
    "max": max,
    "min": min,
    "conj": mp.conj,
    "re": mp.re,
    "im": mp.im,
    "arg": mp.arg,
}
"""Name to mpmath's; ``log`` without a base is read both ways (:func:`equal`), gcd and lcm take integers."""


def equal(first: Node, second: Node, tolerance: float | None = None) -> bool:
    """Whether two expressions have the same value wherever both are real, their variables being real.

    ``log`` without a base must agree both as the natural and as the decimal logarithm. A degree or percent sign counts
    as nothing or as its factor, whichever makes the two equal.

    Args:
        first, second: nodes, without ``pm``.
        tolerance: largest absolute difference between two numbers that still counts as equal.
    """
    tags = tags_of(first) | tags_of(second)
    factors = product(
        (1, ("div", ("const", "pi"), number(180))) if ("degree",) in tags else (1,),
        (1, number(Fraction(1, 100))) if ("percent",) in tags else (1,),
    )
    bases = ("ln", "lg") if ("fn", "log") in tags else ("ln",)
    for degree, percent in factors:
        pairs = [tuple(_read(node, degree, percent, base) for node in (first, second)) for base in bases]
        if all(_same(left, right, tolerance) for left, right in pairs):
            return True
    return False


def has_signs(node: Node) -> bool:
    """Whether a degree or percent sign is in ``node``."""
    return bool({("degree",), ("percent",)} & tags_of(node))


def real(node: Node) -> Any:
    """The value of a real constant, to 60 digits.

    Raises:
        Undecided: it isn't a real number, holds variables, or can't be evaluated.
    """
    value = _Evaluation(_SECOND_BITS, {}).value(_read(node, 1, 1, "ln"))
    if mp.im(value) != 0:
        raise Undecided("not real")
    return mp.re(value)


def _same(first: Node, second: Node, tolerance: float | None) -> bool:
    if first == second:
        return True
    try:
        if tolerance and not variables(first) | variables(second):
            return abs(real(first) - real(second)) <= mp.mpf(str(tolerance))
        if is_rational(first) and is_rational(second):
            return same_rational(first, second)
        return _same_number(first, second)
    except (Undecided, ArithmeticError, ValueError, TypeError):  # what mpmath raises where something isn't defined
        return False


def _same_number(first: Node, second: Node) -> bool:
    """At random points: those where both are real, as long as there are such and neither speaks of i."""
    names = sorted(variables(first) | variables(second))
    if not names:
        return _same_at(first, second, {})
    elsewhere, agreed = [], 0
    piecewise = _is_piecewise(first) or _is_piecewise(second)
    complex_ = ("const", "i") in _constants(first) | _constants(second)
    for point in _points_of_pieces(first, second, names) if piecewise else _points(names):
        try:
            if not complex_ and not _both_real(first, second, point):
                elsewhere.append(point)
                continue
            if not _same_at(first, second, point):
                return False
            agreed += 1
        except (Undecided, ArithmeticError, ValueError, TypeError):
            continue  # outside of a domain
        if agreed == _POINTS and not piecewise:
            return True
    if agreed >= _POINTS:
        return True
    return agreed == 0 and len(elsewhere) >= _POINTS and all(_same_at(first, second, p) for p in elsewhere[:_POINTS])


def _is_piecewise(node: Node) -> bool:
    """Whether two such may agree on an interval and differ beyond it; analytic functions can't (identity theorem)."""
    if node[0] == "root" or node[0] == "fn" and node[1] not in _ANALYTIC:
        return True
    if node[0] == "pow" and variables(node[1]):
        power = None if variables(node[2]) else exact(node[2])
        if power is None or power.denominator != 1:
            return True
    return any(_is_piecewise(part) for part in node if isinstance(part, tuple))


def _points(names: list[str]) -> Iterator[dict[str, Fraction]]:
    drawn = random.Random(",".join(names))
    for _ in range(_TRIES):
        yield {name: Fraction(drawn.randrange(-(2**40), 2**40), 2**38 - 1) for name in names}


def _points_of_pieces(first: Node, second: Node, names: list[str]) -> Iterator[dict[str, Fraction]]:
    """Each variable on both sides of each constant of the two, where pieces meet, between any two, and beyond all."""
    drawn = random.Random(",".join(names))
    found = {Fraction(1), *(value for node in (first, second) for value in _landmarks(node) if value)}
    marks = sorted(drawn.sample(sorted(found), _MOST_MARKS) if len(found) > _MOST_MARKS else found)
    sizes = [marks[0] / 8, marks[0] / 3, marks[-1] * 3, marks[-1] * 8]
    sizes += [(low + high) / 2 for low, high in pairwise(marks)]
    sizes += [mark * factor for mark in marks for factor in (1 + _part(drawn), 1 - _part(drawn))]
    values = [sign * size * (1 + _part(drawn) / 2**20) for size in sizes for sign in (1, -1)]
    drawn.shuffle(values)
    for name in names[:_MOST_SWEPT]:
        for value in values:
            yield {other: value if other == name else drawn.choice(values) for other in names}


def _part(drawn: random.Random) -> Fraction:
    """Between 0 and a tenth."""
    return Fraction(drawn.randrange(1, 2**30), 10 * 2**30 + 1)


def _landmarks(node: Node) -> Iterator[Fraction]:
    """The sizes of the constants in ``node``: numbers, and what is computed from such alone."""
    if not variables(node):
        try:
            yield Fraction(float(abs(_Evaluation(_FIRST_BITS, {}).value(node))))
        except (Undecided, ArithmeticError, ValueError, TypeError):
            pass
    elif node[0] != "var":
        for part in node:
            if isinstance(part, tuple):
                yield from _landmarks(part)


def _both_real(first: Node, second: Node, point: dict[str, Fraction]) -> bool:
    evaluation = _Evaluation(_FIRST_BITS, point)
    return all(mp.im(evaluation.value(node)) == 0 for node in (first, second))


def _constants(node: Node) -> set[Node]:
    if node[0] == "const":
        return {node}
    return set().union(*(_constants(part) for part in node if isinstance(part, tuple)))


def _same_at(first: Node, second: Node, point: dict[str, Fraction]) -> bool:
    """Whether the two are equal at ``point``. A difference that stays when the precision grows is one."""
    at_first, low, high = _difference(first, second, point, _FIRST_BITS)
    if abs(at_first) > mp.ldexp(1, high - _FIRST_BITS // 2):
        at_second, *_ = _difference(first, second, point, _SECOND_BITS)
        if abs(at_first - at_second) < abs(at_second) / 8:
            return False
    bits = _SPARE_BITS + 4 * (high - low)
    if bits > (_MOST_POINT_BITS if point else MAX_BITS):
        raise Undecided("the values are too far apart")
    difference, _, high = _difference(first, second, point, bits)
    return bool(abs(difference) <= mp.ldexp(1, high - bits // 2))


def _difference(first: Node, second: Node, point: dict[str, Fraction], bits: int) -> tuple[Any, int, int]:
    evaluation = _Evaluation(bits, point)
    with mp.workprec(bits):
        difference = evaluation.value(first) - evaluation.value(second)
    return difference, evaluation.low, evaluation.high


class _Evaluation:
    """Evaluates at ``bits`` and keeps the binary exponents of the smallest and the largest value on the way."""

    def __init__(self, bits: int, point: dict[str, Fraction]) -> None:
        self.bits, self.point = bits, point
        self.low = self.high = 0

    def value(self, node: Node) -> Any:
        with mp.workprec(self.bits):
            return self._value(node)

    def _value(self, node: Node) -> Any:
        value = self._computed(node)
        if not mp.isfinite(value):
            raise Undecided("not finite")
        if value:
            magnitude = int(mp.mag(value))
            self.low, self.high = min(self.low, magnitude), max(self.high, magnitude)
        return value

    def _computed(self, node: Node) -> Any:
        tag = node[0]
        if tag in ("num", "var"):
            value = node[1] if tag == "num" else self._at(node[1])
            return mp.mpf(value.numerator) / value.denominator
        if tag == "const":
            return {"pi": +mp.pi, "e": +mp.e, "i": mp.mpc(0, 1)}[node[1]]
        if tag == "add":
            return mp.fsum(self._value(part) for part in node[1:])
        if tag == "mul":
            return mp.fprod(self._value(part) for part in node[1:])
        if tag == "div":
            return self._value(node[1]) / self._value(node[2])
        if tag == "pow":
            return self._power(node[1], node[2])
        if tag == "root":
            return self._power(node[2], ("div", number(1), node[1]))
        if tag == "fn":
            return self._function(node[1], [self._value(part) for part in node[2:]])
        if tag == "unknown":
            return self._unknown(node[1], [self._value(part) for part in node[2:]])
        raise Undecided(f"no value: {tag}")

    def _at(self, name: str) -> Fraction:
        if name not in self.point:
            raise Undecided("a variable")
        return self.point[name]

    def _power(self, base_node: Node, exponent_node: Node) -> Any:
        base, exponent = self._value(base_node), self._value(exponent_node)
        if base and abs(exponent) * max(1, abs(mp.mag(base))) > 2**40:
            raise Undecided("too large")
        if mp.im(base) == 0 and mp.re(base) < 0:
            rational = exact(exponent_node)
            if rational is not None and rational.denominator % 2:  # the real root, as of -8
                sign = -1 if rational.numerator % 2 else 1
                return sign * mp.power(-mp.re(base), exponent)
        return mp.power(base, exponent)

    def _function(self, name: str, arguments: list[Any]) -> Any:
        if name in _OF_COMPLEX and self.point:
            raise Undecided("points are real: everything would be its own real part")
        largest = max(abs(argument) for argument in arguments)
        if largest > 2**40 and name not in ("ln", "logb", "abs", "max", "min", "floor", "ceil", "conj", "re", "im"):
            raise Undecided("too large")
        if name in _GAMMA and self.bits > _GAMMA_BITS and not all(map(mp.isint, arguments)):
            raise Undecided("a factorial to so many digits")
        if name in INTEGER_FUNCTIONS:
            if any(argument != mp.floor(argument) for argument in arguments):
                raise Undecided("no integer")
            return mp.mpf(INTEGER_FUNCTIONS[name](*(int(argument) for argument in arguments)))
        if name in ("floor", "ceil") and (mp.im(arguments[0]) or self._near_integer(arguments[0])):
            raise Undecided("on a step")
        return FUNCTIONS[name](*arguments)

    def _near_integer(self, value: Any) -> bool:
        distance = abs(value - mp.nint(value))
        return distance != 0 and mp.mag(distance) < mp.mag(value) - self.bits // 2

    def _unknown(self, name: str, arguments: list[Any]) -> Any:
        """A function of which nothing is known: some smooth function of its name that has no identities."""
        drawn = random.Random(f"{name}/{len(arguments)}")
        terms = [(drawn.uniform(0.5, 1.5), drawn.uniform(0.5, 1.5), argument) for argument in arguments]
        if any(abs(argument) > 2**40 for argument in arguments):
            raise Undecided("too large")
        return mp.fsum(mp.sin(a * x + b) + a * mp.cos(b * x * x + a) for a, b, x in terms)


def _read(node: Node, degree: Any, percent: Any, log: str) -> Node:
    """``node`` with signs and logarithms read in one way. Within a trigonometric function a degree is an angle."""
    tag = node[0]
    if tag == "degree":
        return number(1) if degree == 1 else degree
    if tag == "percent":
        return number(1) if percent == 1 else percent
    if tag in ("num", "var", "const"):
        return node
    if tag == "fn":
        if node[1] in _TRIGONOMETRIC:
            degree = ("div", ("const", "pi"), number(180))
        arguments = [_read(part, degree, percent, log) for part in node[2:]]
        if node[1] in ("log", "lg"):
            natural = node[1] == "log" and log == "ln"
            return ("fn", "ln", *arguments) if natural else ("fn", "logb", number(10), *arguments)
        return ("fn", node[1], *arguments)
    return tuple(_read(part, degree, percent, log) if isinstance(part, tuple) else part for part in node)
