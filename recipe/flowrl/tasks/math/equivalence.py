"""Whether two mathematical answers are the same. Runs as a worker: requests and replies are lines of JSON.

An answer that the grammar (:mod:`.grammar`) doesn't understand whole equals its own text alone. The structures of two
that are understood are compared part by part, and scalars by :mod:`.scalars`. docs/rewards.md says what is equal.
Whoever starts the worker limits its time (:mod:`recipe.flowrl.tasks.math.worker_pool`); the memory is bounded below.
"""

import re
from collections.abc import Callable, Sequence
from decimal import Decimal
from functools import lru_cache
from itertools import product

from recipe.flowrl.tasks.math.answers import strip_delimiters
from recipe.flowrl.tasks.math.expressions import NotUnderstood
from recipe.flowrl.tasks.math.grammar import Item, parse
from recipe.flowrl.tasks.math.labels import base_name, labelled, shared_label
from recipe.flowrl.tasks.math.notation import Token, tokens
from recipe.flowrl.tasks.math.rational import Node, variables
from recipe.flowrl.tasks.math.rational import number as node_of
from recipe.flowrl.tasks.math.regions import Region, same_region
from recipe.flowrl.tasks.math.scalars import equal as equal_scalars
from recipe.flowrl.tasks.math.scalars import has_signs

MEMORY_BYTES = 2**30

_REMEMBERED = 256
"""Texts whose structure is kept. A long one takes half a megabyte, so that more of them would fill the memory."""

_DECIMAL = re.compile(r"[+-]?(?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.\d+)?")
_LONGEST_DECIMAL = 64
_CASELESS = re.compile(r"[A-Za-z]{3,}(?:[\s-]+[A-Za-z]+)*|[A-Za-z]{2,}(?:[\s-]+[A-Za-z]+)+")
_MOST_SIGNS = 4


def equal(references: list[str], answer: str, tolerance: float | None = None) -> bool:
    """Whether ``answer`` is one of ``references``.

    Args:
        references: right answers, any of which will do. One that lists several values, as ``1,3,5``, wants them all, in
            any order.
        answer: what was extracted.
        tolerance: largest absolute difference between numbers that still count as equal.
    """
    return any(_equal_one(strip_delimiters(reference), answer, tolerance) for reference in references)


def decide(reference: str, answer: str, tolerance: float | None = None) -> bool | None:
    """The same for one reference where it is plain: the same characters, or two decimals. Else None."""
    if reference == answer:
        return True
    first, second = number(reference), number(answer)
    if first is None or second is None:
        return None
    return abs(first - second) <= Decimal(str(tolerance or 0))


def is_understood(text: str) -> bool:
    """Whether the grammar takes ``text`` whole; what it doesn't take equals its own text alone."""
    return _structure(text, True) is not None


def number(text: str) -> Decimal | None:
    """A decimal number, with thousands commas or without, or None."""
    text = text.strip()
    if len(text) > _LONGEST_DECIMAL or not any(map(str.isdigit, text)) or not text.isascii():
        return None
    return Decimal(text.replace(",", "")) if _DECIMAL.fullmatch(text) else None


def _equal_one(reference: str, answer: str, tolerance: float | None) -> bool:
    decided = decide(reference, answer, tolerance)
    if decided is not None:
        return decided
    if _identity(reference) == _identity(answer) or _same_words(reference, answer):
        return True
    expected, given = _structure(reference, True), _structure(answer, True)
    if expected is not None and given is not None and _Comparison(tolerance).answers(expected, given):
        return True
    # "120,240" is a number, unless what it is compared with can only be a list.
    for text, other, one in ((reference, given, answer), (answer, expected, reference)):
        if other is not None and other[0] in ("list", "set") and _has_commas(text) and not _has_commas(one):
            listed = _structure(text, False)
            if listed is not None and _Comparison(tolerance).answers(listed, other):
                return True
    return False


@lru_cache(maxsize=_REMEMBERED)
def _read(text: str, commas: bool) -> tuple[Token, ...]:
    return tuple(tokens(text, commas))


@lru_cache(maxsize=_REMEMBERED)
def _structure(text: str, commas: bool) -> Item | None:
    """What ``text`` says; None if it isn't understood whole."""
    try:
        return parse(list(_read(text, commas)))
    except (NotUnderstood, ValueError, ArithmeticError, RecursionError):
        return None


def _has_commas(text: str) -> bool:
    return any(token.grouped for token in _read(text, True))


def _identity(text: str) -> tuple[str, ...]:
    """The tokens' texts, without spaces and without braces around one token: what a text is, not what it means."""
    kept: list[str] = []
    for token in _read(text, True):
        kept.append(token.identity if token.kind != "command" else f"\\{token.text}")
        if kept[-1] == "}" and len(kept) > 2 and kept[-3] == "{":
            kept[-3:] = [kept[-2]]
    return tuple(kept)


def _same_words(first: str, second: str) -> bool:
    """Whether the two, one of them within ``\\text{}``, are the same words, as ``\\text{cat}`` and ``cat``."""
    both = [_read(text, True) for text in (first, second)]
    if not all(tokens and all(token.kind in ("text", "letter") for token in tokens) for tokens in both):
        return False
    words = ["".join(" " * token.spaced + token.text for token in tokens).strip() for tokens in both]
    if not any(token.kind == "text" for tokens in both for token in tokens):
        return False
    return words[0].casefold() == words[1].casefold() and all(map(_CASELESS.fullmatch, words))


class _Comparison:
    """Compares structures; ``tolerance`` holds for every number in them."""

    def __init__(self, tolerance: float | None) -> None:
        self.tolerance = tolerance

    def answers(self, first: Item, second: Item) -> bool:
        """Whether two answers are the same; what only one has and the table lets go is let go."""
        if "choice" in (first[0], second[0]):
            return self._choices(first, second)
        region = self._regions(first, second)
        if region is not None:
            return region
        left, right = self._several(first), self._several(second)
        if left is not None and right is not None:
            return self._ordered(left, right) if _named(left) != _named(right) else self._matched(left, right)
        return self._one(first, second)

    def _choices(self, first: Item, second: Item) -> bool:
        """A letter with a value equals either; two letters must be the same, and so must two values."""
        if first[0] != "choice":
            first, second = second, first
        _, letter, value = first
        if second[0] == "choice":
            other = second[2]
            return letter == second[1] and (value is None or other is None or self.answers(value, other))
        if _letter(second) is not None:
            return _letter(second) == letter
        return value is not None and self.answers(value, second)

    def _several(self, item: Item) -> list[Item] | None:
        """The values of a list, a set, an expression with signs of both kinds, or of those behind ``x =``."""
        label, inner = labelled(item)
        if label is not None and inner[0] in ("list", "set"):
            item = inner
        if item[0] == "set":
            return self._elements(item)
        if item[0] == "list":
            return [one for part in shared_label(item) for one in _signed(part)]
        expanded = _signed(item if label is None else inner)
        return expanded if len(expanded) > 1 else None

    def _elements(self, item: Item) -> list[Item]:
        """The different elements of a set."""
        kept: list[Item] = []
        for element in (one for part in item[1] for one in _signed(part)):
            if not any(self._one(element, other) for other in kept):
                kept.append(element)
        return kept

    def _matched(self, left: Sequence[Item], right: Sequence[Item]) -> bool:
        """Whether each item has one of its own on the other side."""
        if len(left) != len(right):
            return False
        rest = list(right)
        for item in left:
            match = next((index for index, other in enumerate(rest) if self._one(item, other)), None)
            if match is None:
                return False
            del rest[match]
        return True

    def _ordered(self, left: Sequence[Item], right: Sequence[Item]) -> bool:
        return len(left) == len(right) and all(map(self._one, left, right))

    def _one(self, first: Item, second: Item) -> bool:
        if first[0] == "relation" or second[0] == "relation":
            return self._relations(first, second)
        if first[0] != second[0]:
            words = _words(first), _words(second)
            return words[0] is not None and words[0] == words[1]
        compare: dict[str, Callable[[Item, Item], bool]] = {
            "scalar": self._scalars,
            "tuple": lambda a, b: a[1:3] == b[1:3] and self._ordered(a[3], b[3]),
            "set": lambda a, b: self._matched(self._elements(a), self._elements(b)),
            "list": lambda a, b: self._matched(a[1], b[1]),
            "ratio": lambda a, b: self._ordered(a[1], b[1]),
            "matrix": lambda a, b: len(a[1]) == len(b[1]) and all(map(self._ordered, a[1], b[1])),
            "determinant": lambda a, b: len(a[1]) == len(b[1]) and all(map(self._ordered, a[1], b[1])),
            "join": self._joins,
            "words": lambda a, b: _words(a) == _words(b),
        }
        return compare[first[0]](first, second) if first[0] in compare else first == second

    def _scalars(self, first: Item, second: Item) -> bool:
        """A unit may be missing on one side; another unit is another value."""
        if first[2] and second[2] and first[2] != second[2]:
            return False
        for one, other in ((first, second), (second, first)):
            if one[2] and not other[2] and has_signs(other[1]):  # 50% isn't 50 cm
                return False
        return equal_scalars(first[1], second[1], self.tolerance)

    def _joins(self, first: Item, second: Item) -> bool:
        if first[1] != second[1]:
            return False
        if first[1] == "setminus":
            return self._one(first[2], second[2]) and self._one(first[3], second[3])
        return self._matched(_flat(first), _flat(second))

    # relations

    def _relations(self, first: Item, second: Item) -> bool:
        if first[0] != "relation" or second[0] != "relation":
            label, value = labelled(first if first[0] == "relation" else second)
            other = second if first[0] == "relation" else first
            if label is None:
                return False
            if value[0] in ("set", "list") or other[0] in ("set", "list"):
                return self.answers(value, other)
            return self._one(value, other)
        left, right = _simple(first), _simple(second)
        if len(left) != len(right):
            return False
        if len(left) == 4:
            if left[2] == right[2] in ("=", "ne") and self._proportional(left, right, signed=False):
                return True
            if left[2] == right[2] in ("<", "le") and self._proportional(left, right, signed=True):
                return True
        return left[2::2] == right[2::2] and self._ordered(left[1::2], right[1::2])

    def _proportional(self, first: Item, second: Item, signed: bool) -> bool:
        """Whether ``a = b`` and ``c = d`` have differences a - b and c - d in a constant ratio, positive if ``signed``.

        F(x) G(y) = G(x) F(y) for all x and y holds for no other F and G that aren't zero.
        """
        if any(side[0] != "scalar" or side[2] for side in (first[1], first[3], second[1], second[3])):
            return False
        f, g = (("add", sides[1][1], ("mul", node_of(-1), sides[3][1])) for sides in (first, second))
        if variables(f) != variables(g) or not variables(f):
            return False
        if equal_scalars(f, node_of(0)) or equal_scalars(g, node_of(0)):
            return False
        f_there, g_there = _renamed(f), _renamed(g)
        if signed:
            f_there, g_there = ("fn", "abs", f_there), ("fn", "abs", g_there)
        return equal_scalars(("mul", f, g_there), ("mul", g, f_there))

    def _regions(self, first: Item, second: Item) -> bool | None:
        """The same set of real numbers? None where that isn't what the two are."""
        left, right = Region.of(first), Region.of(second)
        if left is None or right is None or not (left.certain or right.certain):
            return None
        if left.name and right.name and left.name != right.name:
            return False
        return same_region(left, right)


def _named(items: Sequence[Item]) -> bool:
    """Whether each has a name and the names differ: then their order says which is which."""
    names = [labelled(item)[0] for item in items]
    return None not in names and len({base_name(name) for name in names if name}) > 1


def _letter(item: Item) -> str | None:
    if item[0] == "scalar" and item[1][0] == "var" and item[2] is None:
        return item[1][1]
    return item[1].strip("() ") if item[0] == "words" and len(item[1].strip("() ")) == 1 else None


def _words(item: Item) -> str | None:
    """What a text says: without regard to case where it is words, not letters that stand for something."""
    if item[0] != "words":
        return _letter(item)
    text = item[1].strip("() .")
    return text.casefold() if _CASELESS.fullmatch(text) else text


def _flat(item: Item) -> list[Item]:
    """The sets that a chain of one operator joins."""
    sides: list[Item] = []
    for side in item[2:]:
        sides += _flat(side) if side[0] == "join" and side[1] == item[1] else [side]
    return sides


def _simple(relation: Item) -> Item:
    """``relation`` with < and le alone, read from the left to the right where all signs point one way."""
    sides = list(relation[1:])
    if any(operator in (">", "ge") for operator in sides[1::2]):
        sides.reverse()
        turned = {">": "<", "ge": "le", "<": ">", "le": "ge"}
        sides[1::2] = [turned.get(operator, operator) for operator in sides[1::2]]
    return ("relation", *sides)


def _signed(item: Item) -> list[Item]:
    """The values of an expression with plus-minus signs: each on its own, unless a minus-plus ties them together."""
    signs = sorted(_signs(item))
    if not signs or len({index for index, _ in signs}) > _MOST_SIGNS:
        return [item]
    if any(sign < 0 for _, sign in signs):
        return [_with_signs(item, dict.fromkeys((index for index, _ in signs), value)) for value in (1, -1)]
    indices = [index for index, _ in signs]
    choices = product((1, -1), repeat=len(indices))
    return [_with_signs(item, dict(zip(indices, choice, strict=True))) for choice in choices]


def _signs(part: object) -> set[tuple[int, int]]:
    if not isinstance(part, tuple):
        return set()
    if part and part[0] == "pm":
        return {(part[1], part[2])}
    return set().union(*map(_signs, part))


def _with_signs(item: Item, values: dict[int, int]) -> Item:
    if item and item[0] == "pm":
        return node_of(values[item[1]] * item[2])
    return tuple(_with_signs(part, values) if isinstance(part, tuple) else part for part in item)


def _renamed(node: Node) -> Node:
    if node[0] == "var":
        return ("var", node[1] + " there")
    return tuple(_renamed(part) if isinstance(part, tuple) else part for part in node)


if __name__ == "__main__":
    from recipe.flowrl.tasks.math.worker_pool import serve

    serve(lambda request: {"equal": equal(**request)}, MEMORY_BYTES)
