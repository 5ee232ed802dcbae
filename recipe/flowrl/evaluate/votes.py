"""Which responses to a problem give the same answer."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol


class Judged(Protocol):
    """What is needed of a verdict."""

    correct: bool
    answer: str | None


def answer_groups(verdicts: Sequence[Judged], same: Callable[[Any, Any], bool]) -> list[int | None]:
    """The number of each verdict's group of equal answers, counted from 0; None where there is no answer.

    Each answer is compared with the first of each group so far. A right and a wrong answer are never the same.
    """
    groups: list[int | None] = []
    firsts: list[Judged] = []
    known: dict[tuple[bool, str], int] = {}
    for verdict in verdicts:
        if verdict.answer is None:
            groups.append(None)
            continue
        key = (verdict.correct, verdict.answer)
        if key not in known:
            matches = (
                number
                for number, first in enumerate(firsts)
                if first.correct == verdict.correct and same(first, verdict)
            )
            known[key] = next(matches, len(firsts))
            if known[key] == len(firsts):
                firsts.append(verdict)
        groups.append(known[key])
    return groups
