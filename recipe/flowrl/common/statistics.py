"""Unbiased pass@k and bootstrap intervals over puzzles and seeds."""

from collections.abc import Sequence
from math import comb

import numpy as np

RESAMPLES = 2000


def pass_at_k(correct: np.ndarray, samples: int, k: int) -> np.ndarray:
    """Unbiased pass@k (Chen et al., arXiv 2107.03374, Eq. 1): 1 - C(n - c, k) / C(n, k).

    Args:
        correct: right answers c, any shape.
        samples: answers n, at least k.
        k: attempts, at least 1.

    Returns:
        An array of the same shape.

    Raises:
        ValueError: k isn't in 1..samples.
    """
    if not 1 <= k <= samples:
        raise ValueError(f"pass_at_k: k={k} must be in 1..{samples}")
    table = np.array([1 - comb(samples - c, k) / comb(samples, k) for c in range(samples + 1)])
    return table[np.asarray(correct, dtype=int)]


def bootstrap(values: np.ndarray, level: float = 0.95, seed: int = 0) -> tuple[float, float, float]:
    """The mean of ``values`` and its percentile interval, resampling seeds and puzzles independently.

    Args:
        values: (seeds, puzzles).
        level: coverage of the interval.
        seed: of the resampling.

    Returns:
        The mean, the interval's low and high end.
    """
    rng = np.random.default_rng(seed)
    runs, puzzles = values.shape
    # How often each seed and each puzzle is drawn; the mean of a resample is bilinear in both.
    rows = rng.multinomial(runs, np.full(runs, 1 / runs), size=RESAMPLES) / runs
    columns = rng.multinomial(puzzles, np.full(puzzles, 1 / puzzles), size=RESAMPLES) / puzzles
    drawn = ((rows @ values) * columns).sum(-1)
    tail = (1 - level) / 2
    low, high = np.quantile(drawn, [tail, 1 - tail])
    return float(values.mean()), float(low), float(high)


def powers_of_two(limit: int) -> Sequence[int]:
    """1, 2, 4, ... up to ``limit``."""
    return [2**exponent for exponent in range(limit.bit_length()) if 2**exponent <= limit]
