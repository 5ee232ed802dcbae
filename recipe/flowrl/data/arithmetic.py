"""Short arithmetic word problems: one-digit sums, for a small pretrained language model.

Harder ones leave SmolLM2-135M without a reward to learn from. ``reasoning-gym`` has plain sums (``basic_arithmetic``)
and grade-school problems far beyond such a model (``gsm_symbolic``), but none of these.
"""

import random
from itertools import combinations_with_replacement, product
from pathlib import Path

from recipe.flowrl.data.parquet import prompt_row, write_rows

SOURCE = "arithmetic"

TEST_SUMS = 9
"""Of the 45 unordered pairs of digits from 1 to 9. Pairs, not problems, are split: no test sum is trained on."""

_SEED = 0

_TEMPLATES = (
    "{name} has {a} {things} and gets {b} more. How many {things} does {name} have?",
    "{name} has {a} {things} and {other} has {b} {things}. How many {things} do they have in all?",
)
_NAMES = (("Tom", "Ann"), ("Sara", "Ben"), ("Max", "Lily"))
_THINGS = ("apples", "books", "coins", "pens")


def problems() -> dict[str, list[tuple[str, str]]]:
    """``test`` and ``train``: each (problem, answer) once, shuffled; the same at every call."""
    pairs = list(combinations_with_replacement(range(1, 10), 2))
    shuffle = random.Random(_SEED)
    shuffle.shuffle(pairs)
    splits = {"test": _phrase(pairs[:TEST_SUMS]), "train": _phrase(pairs[TEST_SUMS:])}
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
        (template.format(name=name, other=other, things=things, a=a, b=b), str(a + b))
        for (a, b), template, (name, other), things in product(ordered, _TEMPLATES, _NAMES, _THINGS)
    ]
