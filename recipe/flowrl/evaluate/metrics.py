"""Numbers from graded samples. ``P`` problems, ``n`` samples each; intervals: 95%, bootstrap over problems."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from recipe.flowrl.common.statistics import bootstrap, pass_at_k

_EXACT_UP_TO = 14
"""Problems with a difference for which all sign flips are tried: 2^14."""
_FLIPS = 10_000


@dataclass(frozen=True)
class Estimate:
    """A mean over problems, its interval and its standard error (NaN for a single problem)."""

    value: float
    low: float
    high: float
    stderr: float


def mean_over_problems(values: np.ndarray) -> Estimate:
    """The mean of one value a problem.

    The problems are taken as drawn from many. A problem's samples aren't independent of each other, so the standard
    error is that of the P means: sd / sqrt(P).

    Args:
        values: (P,).
    """
    values = np.asarray(values, dtype=float)
    value, low, high = bootstrap(values[None])
    stderr = float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else float("nan")
    return Estimate(value, low, high, stderr)


def avg_at_n(correct: np.ndarray, n: int) -> Estimate:
    """Accuracy of a single response, from ``n`` of each problem.

    Args:
        correct: (P,) right responses.
        n: samples.
    """
    return mean_over_problems(np.asarray(correct) / n)


def pass_at_each_k(correct: np.ndarray, n: int) -> dict[int, Estimate]:
    """Unbiased pass@k for k = 1..n. Arguments as in :func:`avg_at_n`."""
    return {k: mean_over_problems(pass_at_k(correct, n, k)) for k in range(1, n + 1)}


def majority(groups: Sequence[int | None], correct: Sequence[bool]) -> tuple[float, bool]:
    """Whether the answer given most often is right, and whether several tie for that.

    A tie counts as the share of right answers among those that tie, which is the expectation of drawing one. Responses
    without an answer don't vote; without any vote the result is 0.

    Args:
        groups: (n,) number of the answer, None without one.
        correct: (n,) whether it is right; the same within a group.
    """
    votes: dict[int, int] = {}
    right: dict[int, bool] = {}
    for group, is_right in zip(groups, correct, strict=True):
        if group is not None:
            votes[group] = votes.get(group, 0) + 1
            right[group] = bool(is_right)
    if not votes:
        return 0.0, False
    most = max(votes.values())
    tied = [group for group, count in votes.items() if count == most]
    return sum(right[group] for group in tied) / len(tied), len(tied) > 1


@dataclass(frozen=True)
class Difference:
    """Of two systems on the same problems: mean of first minus second, its interval, the p-value of none."""

    value: float
    low: float
    high: float
    p_value: float


def paired_difference(first: np.ndarray, second: np.ndarray) -> Difference:
    """Compare two systems problem by problem: paired bootstrap and two-sided sign-flip test.

    Args:
        first, second: (P,) a value for each problem, in the same order.
    """
    differences = np.asarray(first, dtype=float) - np.asarray(second, dtype=float)
    return Difference(*bootstrap(differences[None]), sign_flip_p(differences))


def sign_flip_p(differences: np.ndarray, seed: int = 0) -> float:
    """Two-sided p-value of "each difference might as well have had the other sign".

    The share of sign assignments whose absolute sum is at least the observed one: of all of them for up to 14 problems
    that differ, else of 10,000 drawn at random, with the observed one counted among them.

    Args:
        differences: (P,).
        seed: of the random signs.
    """
    differing = np.asarray(differences, dtype=float)
    differing = differing[differing != 0]
    observed = abs(differing.sum()) * (1 - 1e-9)  # sums that are equal may differ in their last bits
    if len(differing) <= _EXACT_UP_TO:
        numbers = np.arange(2 ** len(differing))[:, None]
        signs = 1 - 2 * (numbers >> np.arange(len(differing)) & 1)
        return float((np.abs(signs @ differing) >= observed).mean())
    signs = np.random.default_rng(seed).choice([-1.0, 1.0], size=(_FLIPS, len(differing)))
    return float((1 + (np.abs(signs @ differing) >= observed).sum()) / (1 + _FLIPS))
