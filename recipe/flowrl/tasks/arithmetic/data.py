"""Short arithmetic word problems: one-digit sums, for a small pretrained language model.

Harder ones leave SmolLM2-135M without a reward to learn from. ``reasoning-gym`` has plain sums (``basic_arithmetic``)
and grade-school problems far beyond such a model (``gsm_symbolic``), but none of these.
"""

import random
from itertools import combinations_with_replacement, product
from pathlib import Path

from recipe.flowrl.tasks.parquet import prompt_row, write_rows

SOURCE = "arithmetic"

TEST_PAIRS = 8
"""Pairs of numbers held out, of the 36 unordered ones: a test problem's sum, in either order, is never trained on."""

VERSION = 1
"""Raised with every change of the problems; part of the cache's key."""

_SEED = 0

_NUMBERS = range(2, 10)  # from 2 up: no "1 apples"
_TEMPLATES = (
    "{name} has {a} {things} and gets {b} more. How many {things} does {name} have? {hint}",
    "{name} has {a} {things} and {other} has {b} {things}. How many {things} do they have in all? {hint}",
)
_HINT = "Write it as a sum."  # 38% right instead of 19%
_NAMES = (("Tom", "Ann"), ("Sara", "Ben"), ("Max", "Lily"))
_THINGS = ("apples", "books", "coins", "pens")


def problems() -> dict[str, list[tuple[str, str]]]:
    """``test`` and ``train``: each (problem, answer) once, shuffled; the same at every call."""
    pairs = list(combinations_with_replacement(_NUMBERS, 2))
    shuffle = random.Random(_SEED)
    shuffle.shuffle(pairs)
    splits = {"test": _phrase(pairs[:TEST_PAIRS]), "train": _phrase(pairs[TEST_PAIRS:])}
    for members in splits.values():
        shuffle.shuffle(members)
    return splits


def write_dataset(directory: Path) -> dict[str, Path]:
    """Write ``train.parquet`` and ``test.parquet`` in verl's schema; ``ground_truth`` is the answer as text.

    Returns:
        ``{"test": path, "train": path}``.
    """
    return {
        split: write_rows(
            Path(directory) / f"{split}.parquet",
            (
                prompt_row(SOURCE, "arithmetic", problem, answer, index, split)
                for index, (problem, answer) in enumerate(members)
            ),
        )
        for split, members in problems().items()
    }


def _phrase(pairs: list[tuple[int, int]]) -> list[tuple[str, str]]:
    ordered = sorted({order for a, b in pairs for order in ((a, b), (b, a))})
    return [
        (template.format(name=name, other=other, things=things, a=a, b=b, hint=_HINT), str(a + b))
        for (a, b), template, (name, other), things in product(ordered, _TEMPLATES, _NAMES, _THINGS)
    ]
