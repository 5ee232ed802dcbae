"""Change: every way is listed, and only those are right."""

import itertools
import json
from pathlib import Path

import pytest

from recipe.flowrl.tasks.change.data import ChangeConfig, Puzzle, write_dataset
from recipe.flowrl.tasks.change.reward import CHANGE, compute_score

SMALL = ChangeConfig(min_amount=10, max_amount=14, train_size=20, test_size=10)


@pytest.mark.parametrize("puzzle", [Puzzle((2, 3, 7), 12), Puzzle((3, 5, 9), 14), Puzzle((4, 6, 8), 9)])
def test_every_way_is_listed_and_nothing_else_is_right(puzzle: Puzzle) -> None:
    rows = ("".join(map(str, row)) for size in range(1, 8) for row in itertools.product(puzzle.coins, repeat=size))
    ways = [row for row in rows if sum(map(int, row)) == puzzle.amount]
    assert sorted(puzzle.solutions()) == sorted(ways) and puzzle.n_solutions == len(ways)
    for answer in (*ways, "", "22", "1236", "2 3 7", "237 ", "237\n", "７５", "a", "2" * 10_000):
        told = compute_score("change", answer, puzzle.ground_truth)
        assert told["score"] == told["acc"] == float(answer in ways)
        assert told["solution"] == (answer if answer in ways else "") and told["n_solutions"] == len(ways)


def test_what_follows_a_special_token_does_not_count() -> None:
    assert compute_score("change", "237<|im_end|>", Puzzle((2, 3, 7), 12).ground_truth)["acc"] == 1.0


@pytest.mark.parametrize("truth", ["", "12", "{}", '{"coins": 3, "amount": 2}', '{"coins": [2], "amount": "x"}'])
def test_a_ground_truth_that_is_none_is_refused(truth: str) -> None:
    with pytest.raises(ValueError, match="change: ground_truth must be a JSON object with coins and amount"):
        compute_score("change", "2", truth)


def test_files_hold_the_puzzles_and_no_puzzle_twice(tmp_path: Path) -> None:
    paths = write_dataset(tmp_path, SMALL)
    test, train = (CHANGE.read(paths[split]) for split in ("test", "train"))
    assert (test, train) == SMALL.split()
    assert len({*test, *train}) == 30 == len(test) + len(train)
    assert all(8 <= puzzle.n_solutions <= 64 and 10 <= puzzle.amount <= 14 for puzzle in (*test, *train))
    assert json.loads(test[0].ground_truth) == {"coins": list(test[0].coins), "amount": test[0].amount}


def test_lessons_are_other_puzzles() -> None:
    test, _ = SMALL.split()
    lessons = dict(SMALL.lessons(3, set(test)))
    assert not lessons.keys() & set(test) and min(map(len, lessons.values())) == 3
    assert all(solutions == puzzle.solutions() for puzzle, solutions in lessons.items())


def test_more_puzzles_than_there_are_is_refused() -> None:
    with pytest.raises(ValueError, match="change: there are .* puzzles, 20010 wanted: lower train_size"):
        ChangeConfig(min_amount=10, max_amount=14, train_size=20_000, test_size=10).split()
