"""Standings of the contests behind the Codeforces benchmark.

Fetched once from Codeforces's public interface, a small file a contest, so that rating a model needs no network.
The same command again fetches what is missing.
"""

import hashlib
import json
import re
import time
import urllib.error
import urllib.request
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from recipe.flowrl.common.errors import UserError
from recipe.flowrl.common.files import write_json
from recipe.flowrl.evaluate.ratings import Contest
from recipe.flowrl.tasks.code.data import STDIN

API = "https://codeforces.com/api"
PAUSE_S = 2.0
"""Between requests, as Codeforces asks for."""
_DATA = Path(__file__).with_name("codeforces")


@lru_cache(maxsize=1)
def known_problems() -> dict[str, tuple[str, str]]:
    """Contest and letter of each problem, by its fingerprint (:func:`problem_fingerprint`)."""
    names = json.loads((_DATA / "problems.json").read_text())
    return {key: re.fullmatch(r"(\d+)([A-Z]\d*)", name).groups() for key, name in names.items()}


@lru_cache(maxsize=1)
def rating_distribution() -> dict[int, int]:
    """Users of Codeforces by rating, 2024."""
    return {int(rating): users for rating, users in json.loads((_DATA / "ratings_2024.json").read_text()).items()}


def problem_fingerprint(prompt: str) -> str:
    """Stands for a problem's text, whatever instruction ``prepare`` put before it."""
    text = " ".join(prompt.removeprefix(STDIN).split())
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def letters_by_contest() -> dict[str, set[str]]:
    """The letters of each contest's problems that are in the benchmark."""
    contests: dict[str, set[str]] = {}
    for contest, letter in known_problems().values():
        contests.setdefault(contest, set()).add(letter)
    return contests


def load_contest(directory: Path, contest: str) -> Contest | None:
    """A contest that was fetched into ``directory``; None if it wasn't.

    Raises:
        UserError: its file is damaged.
    """
    path = directory / f"{contest}.json"
    if not path.is_file():
        return None
    try:
        facts = json.loads(path.read_text())
        contestants = np.array(facts["contestants"], dtype=float).reshape(-1, 3).T
        return Contest(contest, facts["problems"], *contestants, facts["counts_problems"])
    except (ValueError, LookupError, TypeError) as error:
        raise UserError(f"{path} is damaged ({error}): delete it and fetch it again") from error


def fetch_contest(contest: str, api: str = API, pause_s: float = PAUSE_S) -> dict[str, Any]:
    """Ask Codeforces for the standings of a contest and the ratings that its contestants had before.

    Raises:
        UserError: it has no answer, or the contest wasn't rated.
    """
    standings = _ask(f"{api}/contest.standings?contestId={contest}&showUnofficial=false")
    time.sleep(pause_s)
    before = {c["handle"]: c["oldRating"] for c in _ask(f"{api}/contest.ratingChanges?contestId={contest}")}
    points = {problem["index"]: problem.get("points") for problem in standings["problems"]}
    counts_problems = standings["contest"]["type"] == "ICPC" or None in points.values()
    contestants = [
        [before[row["party"]["members"][0]["handle"]], row["points"], row["penalty"]]
        for row in standings["rows"]
        if len(row["party"]["members"]) == 1 and row["party"]["members"][0]["handle"] in before
    ]
    if not contestants:
        raise UserError(f"contest {contest}: no rated contestants")
    return {
        "problems": dict.fromkeys(points, 1.0) if counts_problems else points,
        "counts_problems": counts_problems,
        "contestants": contestants,
    }


def _ask(url: str) -> Any:
    try:
        with urllib.request.urlopen(url, timeout=120) as reply:
            content = json.load(reply)
    except (urllib.error.URLError, OSError, ValueError) as error:
        raise UserError(f"{url}: {error}") from error
    if content.get("status") != "OK":
        raise UserError(f"{url}: {content.get('comment', 'refused')}")
    return content["result"]


def fetch_all(out: Path, api: str = API, pause_s: float = PAUSE_S) -> int:
    """Fetch the standings of every contest that ``out`` lacks, with a line each; returns how many can't be had."""
    contests, failed = sorted(letters_by_contest()), 0
    for number, contest in enumerate(contests, 1):
        if (out / f"{contest}.json").is_file():
            continue
        try:
            write_json(out / f"{contest}.json", fetch_contest(contest, api, pause_s))
            print(f"{number}/{len(contests)}  {contest}", flush=True)
        except UserError as error:
            failed += 1
            print(f"{number}/{len(contests)}  {contest}: {error}", flush=True)
        time.sleep(pause_s)
    print(f"{len(contests) - failed} of {len(contests)} contests in {out}")
    return failed
