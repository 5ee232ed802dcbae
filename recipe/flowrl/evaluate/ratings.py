"""A Codeforces rating from contests that others took part in: the rating at which one expects the rank one had.

CodeElo's method (arXiv 2501.01257), which the paper's evaluation uses. For each contest the samples of a problem are
attempts, in order, up to the first right one. Score and penalty (:func:`contest_result`) give the rank among the rated
contestants (:func:`rank_among`); the contest's rating is the one whose expected rank under the Elo model is that rank,
which is Codeforces's own seed formula. The rating is the mean over contests.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

LOWEST, ABOVE_THE_BEST = 0.0, 100.0
"""A contest's rating is kept between this and so much above its best contestant's: a rank behind everybody, or before
everybody, fits any rating beyond."""

_LOST_POINTS = 50.0
"""For a failed attempt before the first right one, in contests with points."""
_LOST_MINUTES = 10.0
"""The same in contests that count solved problems."""


@dataclass(frozen=True)
class Contest:
    """A contest that took place.

    Attributes:
        id: Codeforces's number.
        problems: points of each problem, by its letter; all 1 where the number of solved problems counts.
        ratings: (C,) of the rated contestants, before the contest.
        scores: (C,) what they reached.
        penalties: (C,) minutes; decide between equal scores.
        counts_problems: solved problems are the score: Educational rounds, divisions 3 and 4.
    """

    id: str
    problems: Mapping[str, float]
    ratings: np.ndarray
    scores: np.ndarray
    penalties: np.ndarray
    counts_problems: bool


def contest_result(contest: Contest, attempts: Mapping[str, Sequence[bool]]) -> tuple[float, float]:
    """Score and penalty of a system in ``contest``.

    With points: a solved problem's points, less 50 for each attempt that failed before (not below 0), no penalty. Where
    solved problems count: 1 each, and 10 minutes of penalty for each such attempt. A model has no time of submission:
    its points don't decay and its penalty has no other part, which favours it over people.

    Args:
        contest: the contest.
        attempts: whether each attempt succeeded, by problem letter.
    """
    score = penalty = 0.0
    for letter, succeeded in attempts.items():
        if True not in succeeded:
            continue
        failed = list(succeeded).index(True)
        if contest.counts_problems:
            score, penalty = score + 1, penalty + _LOST_MINUTES * failed
        else:
            score += max(0.0, contest.problems[letter] - _LOST_POINTS * failed)
    return score, penalty


def rank_among(contest: Contest, score: float, penalty: float) -> float:
    """1 plus the contestants with a better result, plus half of those with the same."""
    level = contest.scores == score
    ahead = (contest.scores > score) | (level & (contest.penalties < penalty))
    return 1.0 + float(ahead.sum()) + 0.5 * float((level & (contest.penalties == penalty)).sum())


def expected_rank(rating: float, ratings: np.ndarray) -> float:
    """1 plus the sum of the probabilities that each contestant comes before one of ``rating``."""
    return 1.0 + float((1.0 / (1.0 + 10.0 ** ((rating - ratings) / 400.0))).sum())


def rating_for_rank(rank: float, ratings: np.ndarray) -> float:
    """The rating whose :func:`expected_rank` among ``ratings`` is ``rank``, kept from 0 to 100 above the best.

    The expected rank falls as the rating rises, so the interval is halved until it is narrower than 0.001.
    """
    low, high = LOWEST, float(ratings.max()) + ABOVE_THE_BEST
    while high - low > 1e-3:
        middle = (low + high) / 2
        if expected_rank(middle, ratings) > rank:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def contest_rating(contest: Contest, attempts: Mapping[str, Sequence[bool]]) -> float:
    """The rating that a system's result in one contest stands for. Arguments as in :func:`contest_result`."""
    return rating_for_rank(rank_among(contest, *contest_result(contest, attempts)), contest.ratings)


def percentile(rating: float, distribution: Mapping[int, int]) -> float:
    """The share of rated users below ``rating``.

    Args:
        rating: to place.
        distribution: users by rating.
    """
    below = sum(users for other, users in distribution.items() if other < rating)
    return below / sum(distribution.values())
