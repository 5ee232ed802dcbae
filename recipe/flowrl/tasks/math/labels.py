"""What ``x =`` before a value is: a name, which the value may have or not."""

from recipe.flowrl.tasks.math.grammar import Item
from recipe.flowrl.tasks.math.rational import Node, variables
from recipe.flowrl.tasks.math.scalars import equal


def is_label(item: Item) -> bool:
    """A name: of a value, a function of variables, a segment, its length, a ratio of two, a point; or words."""
    if item[0] == "words":
        return True
    if item[0] == "tuple":
        return item[1:3] == ("(", ")") and all(part[0] == "scalar" and is_label(part) for part in item[3])
    if item[0] != "scalar" or item[2]:
        return False
    node = item[1]
    if node[0] == "var":
        return True
    if node[0] == "unknown":
        return all(part[0] == "var" for part in node[2:])
    if node[0] == "div":
        return all(map(_is_segment, node[1:]))
    if node[:2] == ("fn", "abs"):
        return _is_segment(node[2])
    parts = _factors(node)
    if len(parts) == 2 and parts[0][0] == "var" and parts[0] != parts[1] and parts[1][0] == "var":
        return True  # P(x), or a segment AB
    return len(parts) > 2 and all(part[0] == "var" and part[1].isupper() for part in parts)


def _is_segment(node: Node) -> bool:
    parts = _factors(node)
    return len(parts) == 2 and all(part[0] == "var" and part[1].isupper() for part in parts)


def _factors(node: Node) -> list[Node]:
    return [factor for part in node[1:] for factor in _factors(part)] if node[0] == "mul" else [node]


def labelled(item: Item) -> tuple[Item | None, Item]:
    """Name and value of ``x = value``, ``value = x`` or ``x \\in {...}``; None and ``item`` if it is something else."""
    if item[0] == "list" and item[1][0][0] == "relation" and all(part[0] != "relation" for part in item[1][1:]):
        label, value = labelled(item[1][0])
        return (label, ("list", (value, *item[1][1:]), item[2])) if label else (None, item)
    if item[0] != "relation":
        return None, item
    _, *sides = item
    if len(sides) > 3 and all(operator == "=" for operator in sides[1::2]) and is_label(sides[0]):
        values = sides[2::2]
        same = all(_same(values[0], other) for other in values[1:])
        return (sides[0], values[0]) if same else (None, item)
    if len(sides) != 3 or sides[1] not in ("=", "in"):
        return None, item
    for label, value in ((sides[0], sides[2]), (sides[2], sides[0])):
        if is_label(label) and not (_names(label) & _names(value) and value[0] == "scalar" and label[1][0] == "var"):
            if sides[1] == "=" or label is sides[0] and value[0] == "set":
                return label, value
    return None, item


def _same(first: Item, second: Item) -> bool:
    if first[0] == second[0] == "scalar" and first[2] == second[2]:
        return equal(first[1], second[1])
    return first == second


def _names(item: Item) -> set[str]:
    return variables(item[1]) if item[0] == "scalar" else set()


def shared_label(item: Item) -> tuple[Item, ...]:
    """The items of a list, without ``x =`` where each has the same or only the first has one."""
    label, inner = labelled(item)
    if label is not None:
        return inner[1]
    pairs = [labelled(part) for part in item[1]]
    if pairs[0][0] is not None and all(label == pairs[0][0] for label, _ in pairs):
        return tuple(value for _, value in pairs)
    return item[1]


def base_name(label: Item) -> Item:
    """``label`` without its index: ``x_1`` and ``x_2`` are values of one x."""
    if label[0] == "scalar" and label[1][0] == "var":
        return ("scalar", ("var", label[1][1].partition("_")[0]), None)
    return label
