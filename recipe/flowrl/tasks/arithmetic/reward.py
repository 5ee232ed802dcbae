"""Reward for arithmetic word problems: the last number of the response is the answer."""

import re
from collections import deque
from decimal import Decimal
from typing import Any

_NUMBER = re.compile(r"(?:(?<![\w)])[-−])?[0-9]+(?:,[0-9]{3})*(?:\.[0-9]+)?")
"""A minus sign counts where it can't be a hyphen or an operator. Needs time linear in the text."""

_LONGEST_NUMBER = 32
"""Characters. Anything longer is wrong without being converted."""


def compute_score(
    data_source: str,
    solution_str: str,
    ground_truth: str,
    extra_info: dict[str, Any] | None = None,
    **kwargs: Any,
) -> dict[str, float | str]:
    """Score one response; a reward function in verl's sense.

    Args:
        data_source: not looked at, like ``extra_info`` and ``kwargs``.
        solution_str: the response. Any text will do.
        ground_truth: the right number, as text.
        extra_info: see above.
        **kwargs: see above.

    Returns:
        ``score`` and ``acc``: 1.0 if the last number equals ``ground_truth`` (``8`` = ``8.0``), else 0.0; ``solution``:
        ``ground_truth`` if so, else ``""``; ``n_solutions``: how many different right answers there are, always 1.0.

    Raises:
        decimal.InvalidOperation: ``ground_truth`` is no number.
    """
    expected = Decimal(ground_truth)
    score = float(last_number(solution_str) == expected)
    return {"score": score, "acc": score, "solution": str(ground_truth) if score else "", "n_solutions": 1.0}


def last_number(text: str) -> Decimal | None:
    """The last decimal number in ``text``, thousands commas dropped; None if there is none or it is absurdly long."""
    found = deque(_NUMBER.finditer(text), maxlen=1)
    number = found[0].group() if found else ""
    if not 0 < len(number) <= _LONGEST_NUMBER:
        return None
    return Decimal(number.replace(",", "").replace("−", "-"))
