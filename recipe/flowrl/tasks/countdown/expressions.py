"""Exact algebra of Countdown expressions: parse, normalise, enumerate.

Two expressions count as the same solution when one turns into the other by

* commutativity: ``a + b = b + a``, ``a * b = b * a``;
* associativity, with the inverse operations: ``a - (b - c) = a - b + c``, ``a / (b / c) = a * c / b``;
* moving a sign: ``(a - b) * (c - d) = (b - a) * (d - c)``, ``a - b * (c - d) = a + b * (d - c)``.

Nothing else is identified: ``a * 1`` and ``a / 1``, or ``2 + 2`` and ``2 * 2``, are different solutions. For n operands
that stand for different numbers there are 1, 6, 68, 1170, ... classes, signed (OEIS A140606). Equal numbers are
interchangeable. All values are :class:`fractions.Fraction`: no rounding anywhere.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from itertools import combinations
from typing import Literal

from recipe.flowrl.common.syntax import parse_python

MAX_EXPRESSION_CHARS = 128
"""Longer text is not parsed: this bounds nesting and literals, hence the time and memory hostile text can take."""

_ALLOWED_TEXT = re.compile(r"[0-9+\-*/() ]+")
_POWER_OR_FLOOR = re.compile(r"\*\s*\*|/\s*/")


@dataclass(frozen=True, slots=True)
class Form:
    """A canonical expression of non-negative value, printed as ``text``.

    ``plus`` holds the added terms of a sum or the numerator of a product; ``minus`` the subtracted terms or the
    denominator; both sorted. ``sign_free``: negating it gives the same form (``3 - 3``, a product with such a factor).
    """

    kind: Literal["number", "sum", "product"]
    value: Fraction
    text: str
    plus: tuple[Form, ...] = ()
    minus: tuple[Form, ...] = ()
    sign_free: bool = False


Signed = tuple[int, Form]
"""An expression: +1 or -1, times its form."""


def canonical_form(expression: str) -> str | None:
    """The canonical text of an arithmetic expression; equal texts mean the same solution.

    Takes non-negative integer literals, ``+ - * /`` (also as unary signs), parentheses and blanks. Returns None for
    anything else: other text, a division by zero, more than ``MAX_EXPRESSION_CHARS`` characters. Never raises.
    """
    parsed = parse(expression)
    return None if parsed is None else signed_text(parsed)


def parse(expression: str) -> Signed | None:
    """The normalised expression, or None where :func:`canonical_form` returns None."""
    if len(expression) > MAX_EXPRESSION_CHARS or not _ALLOWED_TEXT.fullmatch(expression):
        return None
    if _POWER_OR_FLOOR.search(expression):
        return None
    try:
        return _from_ast(parse_python(expression.strip(), mode="eval").body)
    except (SyntaxError, ZeroDivisionError, RecursionError, MemoryError):
        return None


def signed_text(expression: Signed) -> str:
    """Text of a signed form. ``reasoning-gym`` and :func:`parse` both read it back."""
    sign, form = expression
    if sign > 0:
        return form.text
    return f"-({form.text})" if form.kind == "sum" else f"-{form.text}"


def leaves(form: Form) -> list[int]:
    """The numbers used, with multiplicity, ascending."""
    if form.kind == "number":
        return [int(form.value)]
    return sorted(number for part in form.plus + form.minus for number in leaves(part))


def enumerate_solutions(numbers: Sequence[int], target: int) -> list[str]:
    """Every distinct way, as canonical text, to reach ``target`` using each of ``numbers`` exactly once; sorted.

    Exhaustive over ``+ - * /`` with any rational intermediate result. About 0.1 s for four numbers (all targets of the
    same numbers share that work), minutes for five. Raises ValueError on an empty list or a number below 1.
    """
    if not numbers or min(numbers) < 1:
        raise ValueError(f"numbers: need at least one, all >= 1; got {list(numbers)}")
    return list(solutions_by_value(tuple(sorted(numbers))).get(Fraction(target), ()))


@lru_cache(maxsize=4096)
def solutions_by_value(numbers: tuple[int, ...]) -> dict[Fraction, tuple[str, ...]]:
    """All expressions over ``numbers`` (sorted): value -> canonical texts, sorted. Do not modify the result."""
    found: dict[Fraction, list[str]] = {}
    for signed in _all_forms(numbers):
        found.setdefault(signed[0] * signed[1].value, []).append(signed_text(signed))
    return {value: tuple(sorted(texts)) for value, texts in found.items()}


@lru_cache(maxsize=65536)
def _all_forms(numbers: tuple[int, ...]) -> tuple[Signed, ...]:
    """Distinct signed forms over the sorted multiset ``numbers``, each used once."""
    if len(numbers) == 1:
        return ((1, _number(numbers[0])),)
    found: dict[str, Signed] = {}
    for left_numbers, right_numbers in _splits(numbers):
        for left in _all_forms(left_numbers):
            for right in _all_forms(right_numbers):
                for result in _combinations(left, right):
                    found.setdefault(signed_text(result), result)
    return tuple(found.values())


def _splits(numbers: tuple[int, ...]) -> set[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Ways to part the multiset into two non-empty ones (in one order only)."""
    parts = set()
    for size in range(1, len(numbers) // 2 + 1):
        for chosen in combinations(range(len(numbers)), size):
            left = tuple(numbers[i] for i in chosen)
            right = tuple(number for i, number in enumerate(numbers) if i not in chosen)
            parts.add((left, right))
    return parts


def _combinations(a: Signed, b: Signed) -> Iterable[Signed]:
    yield _sum([a, b])
    yield _sum([a, _negated(b)])
    yield _sum([b, _negated(a)])
    yield _product([(a, 1), (b, 1)])
    if b[1].value:
        yield _product([(a, 1), (b, -1)])
    if a[1].value:
        yield _product([(b, 1), (a, -1)])


def _from_ast(node: ast.expr) -> Signed:
    match node:
        case ast.Constant(value=int(value)):
            return 1, _number(value)
        case ast.UnaryOp(op=ast.UAdd(), operand=operand):
            return _from_ast(operand)
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return _negated(_from_ast(operand))
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return _sum([_from_ast(left), _from_ast(right)])
        case ast.BinOp(left=left, op=ast.Sub(), right=right):
            return _sum([_from_ast(left), _negated(_from_ast(right))])
        case ast.BinOp(left=left, op=ast.Mult(), right=right):
            return _product([(_from_ast(left), 1), (_from_ast(right), 1)])
        case ast.BinOp(left=left, op=ast.Div(), right=right):
            return _product([(_from_ast(left), 1), (_from_ast(right), -1)])
    raise SyntaxError("not an arithmetic expression")


def _number(value: int) -> Form:
    return Form("number", Fraction(value), str(value))


def _negated(expression: Signed) -> Signed:
    sign, form = expression
    return expression if form.sign_free else (-sign, form)


def _order(form: Form) -> tuple[Fraction, str]:
    """Larger values first: ``8*(5-2)`` rather than ``(5-2)*8``."""
    return -form.value, form.text


def _sum(terms: list[Signed]) -> Signed:
    plus: list[Form] = []
    minus: list[Form] = []
    fixed: list[Form] = []
    for sign, form in terms:
        parts = [(1, p) for p in form.plus] + [(-1, p) for p in form.minus] if form.kind == "sum" else [(1, form)]
        for part_sign, part in parts:
            side = fixed if part.sign_free else plus if sign * part_sign > 0 else minus
            side.append(part)
    plus.sort(key=_order)
    minus.sort(key=_order)
    value = sum((f.value for f in plus), Fraction(0)) - sum((f.value for f in minus), Fraction(0))
    sign = 1
    # A sum of value 0 has two orientations of equal right; any fixed choice will do.
    if value < 0 or (value == 0 and [f.text for f in plus] < [f.text for f in minus]):
        plus, minus, value, sign = minus, plus, -value, -1
    sign_free = plus == minus
    plus = sorted(plus + fixed, key=_order)
    text = "+".join(f.text for f in plus) + "".join(f"-{f.text}" for f in minus)
    return sign, Form("sum", value, text, tuple(plus), tuple(minus), sign_free)


def _product(factors: list[tuple[Signed, int]]) -> Signed:
    """Product of signed forms, each to the power +1 or -1. Raises ZeroDivisionError."""
    numerator: list[Form] = []
    denominator: list[Form] = []
    sign = 1
    for (factor_sign, form), power in factors:
        sign *= factor_sign
        over, under = (form.plus, form.minus) if form.kind == "product" else ((form,), ())
        numerator += over if power > 0 else under
        denominator += under if power > 0 else over
    numerator.sort(key=_order)
    denominator.sort(key=_order)
    value = Fraction(1)
    for form in numerator:
        value *= form.value
    for form in denominator:
        value /= form.value
    sign_free = any(f.sign_free for f in numerator)
    text = "*".join(map(_as_factor, numerator)) + "".join(f"/{_as_factor(f)}" for f in denominator)
    form = Form("product", value, text, tuple(numerator), tuple(denominator), sign_free)
    return (1 if sign_free else sign), form


def _as_factor(form: Form) -> str:
    return f"({form.text})" if form.kind == "sum" else form.text
