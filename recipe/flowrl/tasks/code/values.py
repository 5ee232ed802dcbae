"""Arguments and results of function-call tests as JSON, and whether a result is the expected one."""

import math
from typing import Any

LONGEST_INTEGER_BITS = 10_000
"""Of an integer that is written in decimal."""

_DEEPEST = 100
_RELATIVE_TOLERANCE = 1e-9
"""Of floats: the order of a sum may differ."""


def encode(value: Any) -> Any:
    """A Python value as JSON. What JSON lacks becomes an object with one key: its type.

    Raises:
        ValueError: no plain value.
    """
    if isinstance(value, int) and value.bit_length() > LONGEST_INTEGER_BITS:
        return {"hex": hex(value)}  # Python refuses to write or read so many decimal digits
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else {"float": repr(value)}
    if isinstance(value, list):
        return [encode(item) for item in value]
    if isinstance(value, tuple):
        return {"tuple": [encode(item) for item in value]}
    if isinstance(value, set | frozenset):
        return {"set": [encode(item) for item in value]}
    if isinstance(value, dict):
        return {"dict": [[encode(key), encode(item)] for key, item in value.items()]}
    if isinstance(value, complex):
        return {"complex": repr(value)}
    raise ValueError(f"a value of type {type(value).__name__} can't be part of a test")


def same_result(expected: Any, given: Any, tolerance: float = 0.0, depth: int = 0) -> bool:
    """Whether two encoded values are equal.

    Args:
        expected: of the test.
        given: what came out of the sandbox: any JSON value at all.
        tolerance: largest absolute difference from an expected float. An expected integer has to be met exactly.
        depth: of this value in the whole.
    """
    if depth > _DEEPEST:
        return False
    expected, given = _unordered(expected), _unordered(given)
    if isinstance(expected, list) and isinstance(given, list):
        pairs = zip(expected, given, strict=False)
        return len(expected) == len(given) and all(same_result(a, b, tolerance, depth + 1) for a, b in pairs)
    if isinstance(expected, dict) and isinstance(given, dict):
        return expected.keys() == given.keys() and all(
            same_result(value, given[key], tolerance, depth + 1) for key, value in expected.items()
        )
    if isinstance(expected, float) and _is_number(given):
        return math.isclose(expected, given, rel_tol=_RELATIVE_TOLERANCE, abs_tol=max(tolerance, 1e-12))
    return type(expected) is type(given) and expected == given or _is_number(expected) and expected == given


def _unordered(value: Any) -> Any:
    """Sets and dicts in an order of their own; a tuple as a list."""
    if isinstance(value, dict) and len(value) == 1:
        ((kind, content),) = value.items()
        if kind == "tuple":
            return content
        if kind in ("set", "dict") and isinstance(content, list):
            return {kind: sorted(content, key=repr)}
    return value


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float)
