"""What m answers, drawn without replacement from those that there are, hold in expectation.

More answers hold more different ones whatever the system, so systems are compared at equal m (rarefaction: Hurlbert,
Ecology 52, 1971; the complement of unbiased pass@k for each form of a solution).
"""

import random
from collections.abc import Callable, Hashable, Sequence
from itertools import combinations
from math import comb

import numpy as np

SUBSETS = 32
"""Subsets at which a measure without a closed form is averaged; all of them where there are no more."""


def expected_distinct(items: Sequence[Hashable], draws: int) -> float:
    """Expected number of different items among ``draws`` of ``items``. Raises ValueError if there are fewer items."""
    _check(len(items), draws)
    counts: dict[Hashable, int] = {}
    for item in items:
        counts[item] = counts.get(item, 0) + 1
    return float(sum(hit_probability(count, len(items), draws) for count in counts.values()))


def hit_probability(holders: int, items: int, draws: int) -> float:
    """Probability that ``draws`` of ``items`` include at least one of ``holders``: 1 - C(n - c, m) / C(n, m)."""
    return 1 - comb(items - holders, draws) / comb(items, draws)


def mean_over_subsets(measure: Callable[[Sequence[int]], float], items: int, draws: int, seed: str) -> float:
    """Mean of ``measure``, which takes indices, over subsets of ``draws`` of ``items``.

    Over all of them, or over :data:`SUBSETS` that ``seed`` chooses. Raises ValueError if there are fewer items.
    """
    _check(items, draws)
    if comb(items, draws) <= SUBSETS:
        subsets = list(combinations(range(items), draws))
    else:
        rng = random.Random(seed)
        subsets = [tuple(sorted(rng.sample(range(items), draws))) for _ in range(SUBSETS)]
    return float(np.mean([measure(subset) for subset in subsets]))


def sampled_pairs(items: int, seed: str, limit: int = 2 * SUBSETS) -> list[tuple[int, int]]:
    """Pairs i < j of ``items``: all, or ``limit`` that ``seed`` chooses where there are more."""
    pairs = list(combinations(range(items), 2))
    return pairs if len(pairs) <= limit else sorted(random.Random(seed).sample(pairs, limit))


def _check(items: int, draws: int) -> None:
    if not 1 <= draws <= items:
        raise ValueError(f"draws={draws} must be in 1..{items}")
