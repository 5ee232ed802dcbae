"""Rational numbers and rational expressions, compared exactly and without being expanded.

Two numbers that are short enough are compared as fractions. Everything else is evaluated in prime fields, at random
points modulo random primes of 128 bits: two that differ agree with a probability below degree / 2**120 (Schwartz
1980, Zippel 1979). The nodes are those of :mod:`.scalars`.
"""

import math
import random
from collections.abc import Callable, Iterator
from fractions import Fraction
from functools import cache
from typing import Any

Node = tuple[Any, ...]

MAX_BITS = 200_000
"""Of an exact number, and of the precision of an evaluation."""

_LARGEST_FACTORIAL = 1_000_000
INTEGER_FUNCTIONS = {"gcd": math.gcd, "lcm": math.lcm}
_RATIONAL: dict[str, Callable[..., Any]] = {"abs": abs, "floor": math.floor, "ceil": math.ceil, "max": max, "min": min}


class Undecided(Exception):
    """The value is too large, isn't defined, or would take too much work."""


def number(value: int | Fraction) -> Node:
    """The node of a rational number."""
    return ("num", Fraction(value))


def variables(node: Node) -> set[str]:
    """Names of the variables in ``node``."""
    return {tag[1] for tag in tags_of(node) if tag[0] == "var"}


def exact(node: Node) -> Fraction | None:
    """The rational number that ``node`` is; None if it isn't one.

    Raises:
        Undecided: it has more than :data:`MAX_BITS` bits.
    """
    tag = node[0]
    if tag == "num":
        return node[1]
    if tag not in ("add", "mul", "div", "pow", "fn"):
        return None
    parts = [exact(part) for part in node[(2 if tag == "fn" else 1) :]]
    values = [value for value in parts if value is not None]
    if len(values) < len(parts):
        return None
    if tag == "add":
        return _bounded(sum(values, Fraction(0)))
    if tag == "mul":
        return _bounded(math.prod(values, start=Fraction(1)))
    if tag == "div":
        return _bounded(values[0] / _nonzero(values[1]))
    return _exact_power(*values) if tag == "pow" else _exact_function(node[1], values)


def same_rational(first: Node, second: Node) -> bool:
    names = sorted(variables(first) | variables(second))
    if not names:
        try:
            return exact(first) == exact(second)
        except Undecided:
            pass
    for prime in _primes():
        drawn = random.Random(prime)
        for _ in range(1 if not names else 2):
            point = {name: drawn.randrange(prime) for name in names}
            if _modular(first, point, prime) != _modular(second, point, prime):
                return False
    return True


def _modular(node: Node, point: dict[str, int], prime: int) -> int:
    """The value of a rational expression modulo ``prime``."""
    tag = node[0]
    if tag == "num":
        return node[1].numerator * _inverse(node[1].denominator, prime) % prime
    if tag == "var":
        return point[node[1]]
    if tag == "add":
        return sum(_modular(part, point, prime) for part in node[1:]) % prime
    if tag == "mul":
        value = 1
        for part in node[1:]:
            value = value * _modular(part, point, prime) % prime
        return value
    if tag == "div":
        return _modular(node[1], point, prime) * _inverse(_modular(node[2], point, prime), prime) % prime
    if tag == "pow":
        base, exponent = _modular(node[1], point, prime), int(_rational(node[2]))
        return pow(base if exponent >= 0 else _inverse(base, prime), abs(exponent), prime)
    return _modular_function(node, prime)


def _modular_function(node: Node, prime: int) -> int:
    name = node[1]
    if "factorial" in name:
        return _factorial(_natural(exact(node[2])), 2 if name == "doublefactorial" else 1, prime)
    return _modular(("num", _rational(node)), {}, prime)


def _factorial(n: int, step: int, prime: int | None) -> int:
    if n > _LARGEST_FACTORIAL:
        raise Undecided("too large")
    value = 1
    for factor in range(n, 1, -step):
        value = value * factor if prime is None else value * factor % prime
    return value


def _exact_power(base: Fraction, exponent: Fraction) -> Fraction | None:
    if exponent.denominator != 1:
        return None
    size = max(base.numerator.bit_length(), base.denominator.bit_length())
    if size > 1 and size * abs(exponent.numerator) > MAX_BITS:
        raise Undecided("too large")
    if size <= 1:  # 0, 1, -1
        exponent = Fraction(min(exponent.numerator, 2 + exponent.numerator % 2)) if exponent > 0 else exponent % 2
        exponent = exponent if base or exponent > 0 else Fraction(-1)
    return _nonzero(base) ** exponent.numerator if exponent < 0 else base**exponent.numerator


def _exact_function(name: str, values: list[Fraction]) -> Fraction | None:
    if name == "factorial" or name == "doublefactorial":
        n = _natural(values[0])
        if n > MAX_BITS // 10:
            raise Undecided("too large")
        return Fraction(math.factorial(n) if name == "factorial" else _factorial(n, 2, None))
    if name == "binom":
        n, k = map(_natural, values)
        if min(k, n - k) * n.bit_length() > MAX_BITS:
            raise Undecided("too large")
        return Fraction(math.comb(n, k))
    if name in INTEGER_FUNCTIONS:
        return Fraction(INTEGER_FUNCTIONS[name](*map(_natural, values)))
    return Fraction(_RATIONAL[name](*values)) if name in _RATIONAL else None


def is_rational(node: Node) -> bool:
    """Whether ``node`` is made of rational numbers, variables, and integer powers alone."""
    tag = node[0]
    if tag in ("num", "var"):
        return True
    if tag in ("add", "mul", "div"):
        return all(map(is_rational, node[1:]))
    if tag == "pow":
        exponent = exact(node[2])
        return exponent is not None and exponent.denominator == 1 and is_rational(node[1])
    if tag == "fn":
        if node[1] in ("factorial", "doublefactorial"):  # may be too large to be written down
            value = exact(node[2])
            return value is not None and value.denominator == 1 and value >= 0
        return exact(node) is not None
    return False


def tags_of(node: Node) -> set[tuple[str, ...]]:
    tags = {node[:2] if node[0] in ("var", "fn") else node[:1]}
    return tags.union(*(tags_of(part) for part in node if isinstance(part, tuple)))


def _bounded(value: Fraction) -> Fraction:
    if max(value.numerator.bit_length(), value.denominator.bit_length()) > MAX_BITS:
        raise Undecided("too large")
    return value


def _nonzero(value: Fraction) -> Fraction:
    if value == 0:
        raise Undecided("division by zero")
    return value


def _rational(node: Node) -> Fraction:
    value = exact(node)
    if value is None:
        raise Undecided("no rational number")
    return value


def _natural(value: Fraction | None) -> int:
    if value is None or value.denominator != 1 or value < 0:
        raise Undecided("no natural number")
    return int(value)


def _inverse(value: int, prime: int) -> int:
    if value % prime == 0:
        raise Undecided("division by zero")
    return pow(value, -1, prime)


@cache
def _primes() -> tuple[int, int]:
    """Two primes that nobody who writes an answer knows: drawn once a process."""
    drawn = random.SystemRandom()
    candidates: Iterator[int] = (drawn.getrandbits(128) | 1 | 1 << 127 for _ in iter(int, 1))
    primes = (candidate for candidate in candidates if _is_prime(candidate))
    return next(primes), next(primes)


def _is_prime(n: int) -> bool:
    """Miller-Rabin with 40 bases."""
    twos = ((n - 1) & (1 - n)).bit_length() - 1
    odd = (n - 1) >> twos
    for _ in range(40):
        x = pow(random.randrange(2, n - 1), odd, n)
        if x in (1, n - 1):
            continue
        for _ in range(twos - 1):
            x = x * x % n
            if x == n - 1:
                break
        else:
            return False
    return True
