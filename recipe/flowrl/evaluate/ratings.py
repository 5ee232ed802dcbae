"""A Codeforces rating from contests that others took part in: the rating at which one expects the rank one had.

For each contest the samples of a problem are attempts, in order, up to the first right one. The score and, from it, the
rank among the contestants follow :func:`contest_score` and :func:`rank_among`; the contest's rating is the one whose
expected rank under the Elo model is that rank (Codeforces's own seed formula). The rating is the mean over contests.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

LOWEST, HIGHEST = 0.0, 4000.0
"""A contest's rating is kept within: a rank behind everybody, or before everybody, fits any rating beyond."""

_PENALTY = 50.0
"""Points for a failed attempt before the first right one, in contests with points."""


@dataclass(frozen=True)
class Contest:
    """A contest that took place.

    Attributes:
        id: Codeforces's number.
        problems: points of each problem, by its letter; all 1 where the number of solved problems counts.
        ratings: (C,) of the rated contestants, before the contest.
        scores: (C,) what they reached.
        counts_problems: solved problems decide, and time between equals: Educational rounds, divisions 3 and 4.
    """

    id: str
    problems: Mapping[str, float]
    ratings: np.ndarray
    scores: np.ndarray
    counts_problems: bool


def contest_score(contest: Contest, attempts: Mapping[str, Sequence[bool]]) -> float:
    """What a system reaches in ``contest``.

    A solved problem's points, less 50 for each attempt that failed before (not below 0). Points don't decay: a model
    has no time of submission. Where solved problems count, failed attempts don't: they only break ties, by time.

    Args:
        contest: the contest.
        attempts: whether each attempt succeeded, by problem letter.
    """
    score = 0.0
    for letter, succeeded in attempts.items():
        if True in succeeded:
            failed = 0 if contest.counts_problems else list(succeeded).index(True)
            score += max(0.0, contest.problems[letter] - _PENALTY * failed)
    return score


def rank_among(score: float, scores: np.ndarray) -> float:
    """1 plus the contestants with a higher score, plus half of those with the same."""
    return 1.0 + float((scores > score).sum()) + 0.5 * float((scores == score).sum())


def expected_rank(rating: float, ratings: np.ndarray) -> float:
    """1 plus the sum of the probabilities that each contestant comes before one of ``rating``."""
    return 1.0 + float((1.0 / (1.0 + 10.0 ** ((rating - ratings) / 400.0))).sum())


def rating_for_rank(rank: float, ratings: np.ndarray) -> float:
    """The rating whose :func:`expected_rank` among ``ratings`` is ``rank``, within :data:`LOWEST` and :data:`HIGHEST`.

    The expected rank falls as the rating rises, so the interval is halved until it is narrower than 0.001.
    """
    low, high = LOWEST, HIGHEST
    while high - low > 1e-3:
        middle = (low + high) / 2
        if expected_rank(middle, ratings) > rank:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def contest_rating(contest: Contest, attempts: Mapping[str, Sequence[bool]]) -> float:
    """The rating that a system's result in one contest stands for. Arguments as in :func:`contest_score`."""
    rank = rank_among(contest_score(contest, attempts), contest.scores)
    return rating_for_rank(rank, contest.ratings)


def percentile(rating: float, distribution: Mapping[int, int]) -> float:
    """The share of rated users below ``rating``, those who share it counted half.

    Args:
        rating: to place.
        distribution: users by rating.
    """
    ratings = np.array(list(distribution))
    users = np.array(list(distribution.values()), dtype=float)
    below = users[ratings < rating].sum() + 0.5 * users[ratings == rating].sum()
    return float(below / users.sum())
