"""Codeforces ratings: against brute force, on contests simulated under the Elo model, and which contests have none."""

import json
import threading
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import permutations
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pytest

from recipe.flowrl.__main__ import main
from recipe.flowrl.common.errors import UserError
from recipe.flowrl.common.files import write_json
from recipe.flowrl.evaluate import codeforces_rating, contests
from recipe.flowrl.evaluate.contests import load_contest, problem_fingerprint, rating_distribution
from recipe.flowrl.evaluate.ratings import (
    ABOVE_THE_BEST,
    LOWEST,
    Contest,
    contest_rating,
    contest_result,
    expected_rank,
    percentile,
    rank_among,
    rating_for_rank,
)

RATINGS = np.array([800.0, 1200.0, 1500.0, 1500.0, 2100.0, 2600.0])


def contest(
    scores: Sequence[float], penalties: Sequence[float] | None = None, ratings: np.ndarray = RATINGS
) -> Contest:
    """With points; with penalties one that counts solved problems."""
    points = {"A": 500.0, "B": 1000.0} if penalties is None else {"A": 1.0, "B": 1.0}
    minutes = np.zeros(len(scores)) if penalties is None else np.array(penalties)
    return Contest("1", points, ratings, np.array(scores), minutes, penalties is not None)


@pytest.mark.parametrize("result", [(2.0, 0.0), (2.0, 60.0), (2.0, 61.0), (1.0, 10.0), (0.0, 0.0)])
def test_rank_is_the_mean_over_all_orders_of_equals(result: tuple[float, float]) -> None:
    scores, penalties = (2.0, 2.0, 2.0, 1.0, 0.0), (60.0, 60.0, 90.0, 10.0, 0.0)
    entries = [*[(one, False) for one in zip(scores, penalties, strict=True)], (result, True)]
    ranks = []
    for order in permutations(entries):
        ordered = sorted(order, key=lambda entry: (-entry[0][0], entry[0][1]))  # stable: equals stay in this order
        ranks.append(1 + next(place for place, entry in enumerate(ordered) if entry[1]))
    assert rank_among(contest(scores, penalties), *result) == pytest.approx(np.mean(ranks))


def test_expected_rank_is_one_plus_the_chances_to_be_beaten() -> None:
    by_hand = 1 + sum(1 / (1 + 10 ** ((1400 - rating) / 400)) for rating in RATINGS)
    assert expected_rank(1400.0, RATINGS) == pytest.approx(by_hand)


@pytest.mark.parametrize("rank", [1.5, 2.0, 3.5, 5.0, 6.5])
def test_rating_is_the_best_of_all_on_a_grid(rank: float) -> None:
    grid = np.arange(LOWEST, RATINGS.max() + ABOVE_THE_BEST, 0.5)
    best = grid[np.argmin([abs(expected_rank(rating, RATINGS) - rank) for rating in grid])]
    assert rating_for_rank(rank, RATINGS) == pytest.approx(best, abs=0.5)


def test_ratings_stay_within_bounds() -> None:
    assert rating_for_rank(1.0, RATINGS) == pytest.approx(2700.0, abs=0.01)
    assert rating_for_rank(7.0, RATINGS) == pytest.approx(0.0, abs=0.01)


@pytest.mark.parametrize(
    ("attempts", "score"),
    [
        ({"A": [True]}, 500.0),
        ({"A": [False, False, True, False, True]}, 400.0),
        ({"A": [False] * 12 + [True]}, 0.0),
        ({"A": [False] * 16, "B": [False, True]}, 950.0),
        ({"A": [True], "B": [False, True]}, 1450.0),
        ({}, 0.0),
    ],
)
def test_score_with_points(attempts: dict[str, list[bool]], score: float) -> None:
    assert contest_result(contest([0.0] * 6), attempts) == (score, 0.0)


def test_result_where_solved_problems_count() -> None:
    counting = contest([0.0] * 6, [0.0] * 6)
    assert contest_result(counting, {"A": [False, False, True], "B": [True]}) == (2.0, 20.0)
    assert contest_result(counting, {"A": [False, True], "B": [False, False]}) == (1.0, 10.0)


def test_the_mean_rank_of_a_simulated_participant_gives_the_rating() -> None:
    """Performances with Gumbel noise beat each other with the probabilities of the Elo model."""
    rng = np.random.default_rng(0)
    scale = 400 / np.log(10)
    ratings = rng.normal(1400, 400, size=300)
    for true in (900.0, 1800.0, 2400.0):
        ranks = []
        for _ in range(3000):
            place = contest(ratings + rng.gumbel(0, scale, 300), ratings=ratings)
            ranks.append(rank_among(place, true + rng.gumbel(0, scale), 0.0))
        assert rating_for_rank(float(np.mean(ranks)), ratings) == pytest.approx(true, abs=20)


def test_a_contest_is_rated_by_the_rank_of_its_score() -> None:
    place = contest([0.0, 500.0, 500.0, 1400.0, 1450.0, 1500.0])
    rank = 1 + 3 + 0.5 * 2  # 500 points: behind three, level with two
    assert contest_rating(place, {"A": [True], "B": [False]}) == rating_for_rank(rank, RATINGS)


def test_percentile_against_a_list_of_users() -> None:
    distribution = {1200: 3, 1500: 2, 1900: 5}
    users = [1200] * 3 + [1500] * 2 + [1900] * 5
    for rating in (1000, 1200, 1350, 1500, 1900, 2500):
        expected = np.mean([user < rating for user in users])
        assert percentile(rating, distribution) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("rating", "published"), [(886.68, 0.194), (1208.03, 0.568), (1313.82, 0.671), (1403.07, 0.737), (1549.47, 0.833)]
)
def test_percentiles_of_the_committed_table_are_the_published_ones(rating: float, published: float) -> None:
    """Ratings and percentiles of the paper's Table 2."""
    assert percentile(rating, rating_distribution()) == pytest.approx(published, abs=0.0006)


def test_the_committed_problems() -> None:
    letters = contests.letters_by_contest()
    assert len(letters) == 57 and sum(map(len, letters.values())) == 408
    assert letters["1971"] == set("ABCDEFGH")
    assert {"C1", "C2"} <= letters["1984"]


@pytest.fixture
def two_contests(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Contests 11 (problems A and B) and 12 (A) as the known ones, 11 with standings."""
    places = {"one": ("11", "A"), "two": ("11", "B"), "three": ("12", "A")}
    known = {problem_fingerprint(prompt): place for prompt, place in places.items()}
    for module in (contests, codeforces_rating):
        monkeypatch.setattr(module, "known_problems", lambda: known)
    standings = {"problems": {"A": 500, "B": 1000}, "counts_problems": False}
    write_json(tmp_path / "11.json", standings | {"contestants": [[1000, 0, 0], [1500, 500, 0], [2000, 1500, 0]]})
    return tmp_path


def test_contests_without_a_rating_are_named(two_contests: Path) -> None:
    prompts = {"codeforces/0": "one", "codeforces/1": "two", "codeforces/2": "three", "codeforces/3": "?"}
    correct = {"codeforces/0": [True], "codeforces/1": [False], "codeforces/2": [True], "codeforces/3": [True]}
    found = codeforces_rating.rate(prompts, correct, two_contests)
    assert found["rated_contests"].keys() == {"11"}
    assert found["unrated_contests"] == {"12": "no standings"}
    assert found["unknown_problems"] == ["codeforces/3"]
    assert found["rating"] == pytest.approx(rating_for_rank(2.5, np.array([1000.0, 1500.0, 2000.0])))
    assert found["percentile"] == pytest.approx(percentile(found["rating"], rating_distribution()))


def test_a_contest_that_was_evaluated_in_part_is_not_rated(two_contests: Path) -> None:
    found = codeforces_rating.rate({"codeforces/0": "one"}, {"codeforces/0": [True]}, two_contests)
    assert found["rating"] is None and found["percentile"] is None
    assert found["unrated_contests"]["11"] == "1 of its 2 problems were not evaluated"


def test_without_standings_every_contest_is_named(two_contests: Path) -> None:
    found = codeforces_rating.rate(
        {"a": "one", "b": "two", "c": "three"}, {"a": [True], "b": [True], "c": [True]}, None
    )
    assert found["unrated_contests"] == {"11": "no standings", "12": "no standings"}


@pytest.mark.parametrize("content", ["{", "{}", '{"problems": {}, "contestants": [[1]], "counts_problems": false}'])
def test_damaged_standings(tmp_path: Path, content: str) -> None:
    (tmp_path / "7.json").write_text(content)
    with pytest.raises(UserError, match="damaged"):
        load_contest(tmp_path, "7")


class _Codeforces(BaseHTTPRequestHandler):
    """The two methods of Codeforces's interface that are used: contest 1971 has points, 1985 none, others fail."""

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        number = parse_qs(url.query)["contestId"][0]
        people = [("ann", 2000.0), ("bob", 500.0), ("guest", 1500.0)]
        rows = [{"party": {"members": [{"handle": name}]}, "points": points, "penalty": 30} for name, points in people]
        rows.append({"party": {"members": [{"handle": "ann"}, {"handle": "bob"}]}, "points": 9.0, "penalty": 1})
        problems = [{"index": letter, "points": 500.0} for letter in "ABCDEFGH"]
        if number == "1985":
            problems = [{"index": letter} for letter in ("A", "B", "C", "D", "E", "F", "G", "H1", "H2")]
        if number not in ("1971", "1985"):
            content = {"status": "FAILED", "comment": f"contestId: Contest with id {number} not found"}
        elif url.path == "/contest.standings":
            content = {"status": "OK", "result": {"contest": {"type": "CF"}, "problems": problems, "rows": rows}}
        else:
            changes = [{"handle": "ann", "oldRating": 1900}, {"handle": "bob", "oldRating": 1300}]
            content = {"status": "OK", "result": changes}
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps(content).encode())

    def log_message(self, *_: object) -> None:
        """Nothing to say."""


@pytest.fixture
def codeforces() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Codeforces)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def test_standings_are_fetched(codeforces: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [f"out={tmp_path}", f"api={codeforces}", "pause_s=0"]
    assert main(["prepare", "codeforces_standings", *arguments]) == 1, "55 can't be had"
    assert "1972: " in capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1971.json", "1985.json"]
    first, second = load_contest(tmp_path, "1971"), load_contest(tmp_path, "1985")
    assert first.problems["A"] == 500.0 and not first.counts_problems
    assert first.ratings.tolist() == [1900.0, 1300.0] and first.scores.tolist() == [2000.0, 500.0]
    assert second.penalties.tolist() == [30.0, 30.0]
    assert second.counts_problems and second.problems["H1"] == 1.0
