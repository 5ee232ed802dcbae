"""Sets of real numbers, however they are written: intervals and their unions, inequalities, single points."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cmp_to_key
from typing import Any

from recipe.flowrl.tasks.math.grammar import Item
from recipe.flowrl.tasks.math.rational import Node, Undecided, variables
from recipe.flowrl.tasks.math.scalars import equal, real

_INFINITE = {1: float("inf"), -1: float("-inf")}
_TURNED = {"<": ">", "le": "ge", ">": "<", "ge": "le", "=": "=", "ne": "ne"}


@dataclass(frozen=True)
class Region:
    """``holds`` says whether a place is in the set; places are compared with ``bounds``, its finite ends.

    ``certain``: it can only be a set of reals; ``(1, 2)`` may as well be a point. ``name`` of the variable, if any.
    """

    bounds: tuple[Node, ...]
    holds: Callable[["_Line", int], bool]
    certain: bool
    name: str | None = None

    @classmethod
    def of(cls, item: Item) -> "Region | None":
        """The set that ``item`` is, None if it is none."""
        kind = item[0]
        if kind == "tuple":
            return _interval(item)
        if kind == "set":
            return _points(item)
        if kind == "space" and item[1] == "R":
            return cls((), lambda line, place: True, True)
        if kind == "join":
            return _joined(item[1], cls.of(item[2]), cls.of(item[3]))
        if kind == "relation":
            return _relation(item[1:])
        if kind == "builder":
            return _builder(item)
        if kind == "list" and item[2] in ("or", "and"):
            return _combined(item)
        return None


class _Line:
    """The ends of some regions in order. Place 2 k + 1 is the k-th of them, 2 k the gap before it."""

    def __init__(self, bounds: list[Node]) -> None:
        self.ends: list[Node] = []
        for bound in bounds:
            if not any(equal(bound, end) for end in self.ends):
                self.ends.append(bound)
        self.ends.sort(key=cmp_to_key(_order))

    def place(self, bound: Any) -> float:
        if isinstance(bound, float):
            return bound
        return 2 * next(index for index, end in enumerate(self.ends) if equal(bound, end)) + 1


def _order(first: Node, second: Node) -> int:
    return 1 if real(first) > real(second) else -1


def same_region(first: Region, second: Region) -> bool:
    """Whether two sets have the same elements; False where an end can't be told."""
    try:
        line = _Line([*first.bounds, *second.bounds])
        places = range(2 * len(line.ends) + 1)
        return all(first.holds(line, place) == second.holds(line, place) for place in places)
    except (Undecided, ArithmeticError, ValueError, TypeError):
        return False


def _bound(item: Item) -> Any:
    """A constant as a node, or an infinity as a float; None if it is neither."""
    if item[0] == "infinity":
        return _INFINITE[item[1]]
    if item[0] == "scalar" and not item[2] and not variables(item[1]):
        return item[1]
    return None


def _finite(*bounds: Any) -> tuple[Node, ...]:
    return tuple(bound for bound in bounds if not isinstance(bound, float))


def _interval(item: Item) -> Region | None:
    _, left, right, items = item
    ends = [_bound(end) for end in items]
    if len(ends) != 2 or None in ends:
        return None
    low, high = ends
    low_in, high_in = left == "[", right == "]"

    def holds(line: _Line, place: int) -> bool:
        above = place > line.place(low) or low_in and place == line.place(low)
        return above and (place < line.place(high) or high_in and place == line.place(high))

    certain = left + right not in ("()", "[]") or any(isinstance(end, float) for end in ends)
    return Region(_finite(low, high), holds, certain)


def _points(item: Item) -> Region | None:
    points = [_bound(point) for point in item[1]]
    if None in points or any(isinstance(point, float) for point in points):
        return None
    return Region(tuple(points), lambda line, place: any(place == line.place(point) for point in points), False)


def _joined(operator: str, first: Region | None, second: Region | None) -> Region | None:
    if first is None or second is None:
        return None
    combine = {
        "cup": lambda a, b: a or b,
        "cap": lambda a, b: a and b,
        "setminus": lambda a, b: a and not b,
    }[operator]
    if first.name and second.name and first.name != second.name:
        return None
    return Region(
        first.bounds + second.bounds,
        lambda line, place: combine(first.holds(line, place), second.holds(line, place)),
        True,
        first.name or second.name,
    )


def _combined(item: Item) -> Region | None:
    """Inequalities with *or* are a union, with *and* an intersection."""
    regions = [Region.of(part) for part in item[1]]
    if any(region is None or not region.certain for region in regions):
        return None
    whole = regions[0]
    for region in regions[1:]:
        whole = whole and _joined("cup" if item[2] == "or" else "cap", whole, region)
    return whole


def _variable(item: Item) -> str | None:
    return item[1][1] if item[0] == "scalar" and not item[2] and item[1][0] == "var" else None


def _relation(sides: tuple[Any, ...]) -> Region | None:
    """``x < a``, ``a < x <= b``, ``x \\ne a`` or ``x \\in S``; equations are none."""
    if len(sides) == 3 and sides[1] == "in":
        inner, name = Region.of(sides[2]), _variable(sides[0])
        if inner is None or name is None:
            return None
        return Region(inner.bounds, inner.holds, sides[2][0] != "set", name)
    names = enumerate(map(_variable, sides[0::2]))
    found = next(((2 * index, name) for index, name in names if name), None)
    if found is None or "=" in sides[1::2] or "in" in sides[1::2]:
        return None
    position, name = found
    if len(sides) == 3:
        operator, bound = sides[1], _bound(sides[2 - position])
        return _side(name, operator if position == 0 else _TURNED[operator], bound)
    if len(sides) != 5 or position != 2 or "ne" in sides[1::2]:
        return None
    low = _side(name, _TURNED[sides[1]], _bound(sides[0]))
    return _joined("cap", low, _side(name, sides[3], _bound(sides[4])))


def _side(name: str, operator: str, bound: Any) -> Region | None:
    if bound is None:
        return None
    compare = {
        "<": lambda place, end: place < end,
        "le": lambda place, end: place <= end,
        ">": lambda place, end: place > end,
        "ge": lambda place, end: place >= end,
        "ne": lambda place, end: place != end,
    }[operator]
    return Region(_finite(bound), lambda line, place: compare(place, line.place(bound)), True, name)


def _builder(item: Item) -> Region | None:
    _, name, condition = item
    region = Region.of(condition)
    if name[0] == "relation" and name[2:] == ("in", ("space", "R")):
        name = name[1]
    if region is None or _variable(name) is None or region.name != _variable(name):
        return None
    return Region(region.bounds, region.holds, True)
