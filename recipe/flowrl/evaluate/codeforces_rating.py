"""Rating and percentile of a system from its graded samples of the Codeforces benchmark."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from recipe.flowrl.common.statistics import bootstrap
from recipe.flowrl.evaluate.contests import (
    known_problems,
    letters_by_contest,
    load_contest,
    problem_fingerprint,
    rating_distribution,
)
from recipe.flowrl.evaluate.ratings import contest_rating, percentile


def rate(prompts: Mapping[str, str], correct: Mapping[str, Sequence[bool]], contests: Path | None) -> dict[str, Any]:
    """Rate a system over the contests whose problems were all evaluated.

    Args:
        prompts: of each problem, by its id.
        correct: whether each sample is right, in order, by problem id.
        contests: directory of the standings; None: there are none.

    Returns:
        ``rating``, ``rating_interval`` (95%, bootstrap over contests) and ``percentile``, each None if no contest could
        be rated; ``rated_contests``, the rating by contest; ``unrated_contests``, the reason by contest;
        ``unknown_problems``, ids of problems that belong to no known contest.

    Raises:
        UserError: a file of standings is damaged.
    """
    attempts: dict[str, dict[str, Sequence[bool]]] = {}
    unknown = []
    for problem, prompt in prompts.items():
        place = known_problems().get(problem_fingerprint(prompt))
        if place is None:
            unknown.append(problem)
        else:
            attempts.setdefault(place[0], {})[place[1]] = correct[problem]

    rated: dict[str, float] = {}
    unrated: dict[str, str] = {}
    for contest, letters in sorted(letters_by_contest().items()):
        mine = attempts.get(contest, {})
        standings = load_contest(contests, contest) if contests else None
        if letters - mine.keys():
            unrated[contest] = f"{len(letters - mine.keys())} of its {len(letters)} problems were not evaluated"
        elif standings is None:
            unrated[contest] = "no standings"
        elif lacking := letters - standings.problems.keys():
            unrated[contest] = f"problem {min(lacking)} isn't in its standings"
        else:
            rated[contest] = contest_rating(standings, mine)
    facts = {"rated_contests": rated, "unrated_contests": unrated, "unknown_problems": unknown}
    if not rated:
        return {"rating": None, "rating_interval": None, "percentile": None, **facts}
    rating, *interval = bootstrap(np.array([list(rated.values())]))
    return {
        "rating": rating,
        "rating_interval": interval,
        "percentile": percentile(rating, rating_distribution()),
        **facts,
    }
