"""Change: lay down coins of given values, each as often as one likes, one after another, that make an amount.

Every right answer can be listed, the order of the coins being part of it, and there is no other spelling of one. A
prompt's answers have different lengths: few large coins, or many small ones.
"""

import json
import random
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations
from pathlib import Path
from typing import ClassVar

from recipe.flowrl.tasks.puzzles import write_puzzles

SOURCE = "change"


@dataclass(frozen=True)
class ChangeConfig:
    """Which puzzles, and how many.

    ``VERSION`` is raised whenever the same configuration gives other rows; part of the cache's key.

    Attributes:
        coins: different values in a puzzle.
        min_value, max_value: of a coin, one digit each.
        min_amount, max_amount: to be made.
        min_solutions, max_solutions: puzzles with fewer or more are left out.
        train_size, test_size: puzzles in each split; no puzzle is in both.
        seed: of their order.
    """

    VERSION: ClassVar[int] = 1

    coins: int = 3
    min_value: int = 2
    max_value: int = 9
    min_amount: int = 10
    max_amount: int = 28
    min_solutions: int = 8
    max_solutions: int = 64
    train_size: int = 256
    test_size: int = 128
    seed: int = 0

    def split(self) -> tuple[list["Puzzle"], list["Puzzle"]]:
        """The puzzles of the tests and those of the training.

        Raises:
            ValueError: there are too few.
        """
        puzzles = list(self._puzzles(self.min_amount, self.min_solutions))
        wanted = self.test_size + self.train_size
        if len(puzzles) < wanted:
            raise ValueError(f"change: there are {len(puzzles)} puzzles, {wanted} wanted: lower train_size")
        random.Random(self.seed).shuffle(puzzles)
        return puzzles[: self.test_size], puzzles[self.test_size : wanted]

    def lessons(self, min_solutions: int, exclude: Collection["Puzzle"]) -> Iterator[tuple["Puzzle", list[str]]]:
        """All puzzles with ``min_solutions`` or more that aren't in ``exclude``, of smaller amounts as well."""
        for puzzle in self._puzzles(1, min_solutions):
            if puzzle not in exclude:
                yield puzzle, puzzle.solutions()

    def _puzzles(self, min_amount: int, min_solutions: int) -> Iterator["Puzzle"]:
        for coins in combinations(range(self.min_value, self.max_value + 1), self.coins):
            for amount in range(min_amount, self.max_amount + 1):
                puzzle = Puzzle(coins, amount)
                if min_solutions <= puzzle.n_solutions <= self.max_solutions:
                    yield puzzle


@dataclass(frozen=True)
class Puzzle:
    """``coins`` of one digit, ascending, and the ``amount`` to be made."""

    coins: tuple[int, ...]
    amount: int

    @property
    def prompt(self) -> str:
        """What the policy is asked."""
        return f"{' '.join(map(str, self.coins))} -> {self.amount}"

    @property
    def ground_truth(self) -> str:
        """What the reward function needs, as JSON."""
        return json.dumps({"coins": self.coins, "amount": self.amount})

    @property
    def n_solutions(self) -> int:
        """How many ways there are."""
        return len(self.solutions())

    @staticmethod
    def from_ground_truth(text: str) -> "Puzzle":
        """The puzzle that :attr:`ground_truth` describes. Raises ValueError if ``text`` isn't such a description."""
        try:
            facts = json.loads(text)
            return Puzzle(tuple(map(int, facts["coins"])), int(facts["amount"]))
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"change: ground_truth must be a JSON object with coins and amount, not {text!r}"
            ) from error

    def solutions(self) -> list[str]:
        """Every way to lay down the coins, a digit each, in the order of the digits."""
        return list(_ways(self.coins, self.amount))


@lru_cache(maxsize=65536)
def _ways(coins: tuple[int, ...], amount: int) -> tuple[str, ...]:
    if amount == 0:
        return ("",)
    return tuple(f"{coin}{rest}" for coin in coins if coin <= amount for rest in _ways(coins, amount - coin))


def write_dataset(directory: Path, config: ChangeConfig) -> dict[str, Path]:
    """Write ``train.parquet`` and ``test.parquet`` in verl's schema.

    Returns:
        ``{"test": path, "train": path}``.
    """
    return write_puzzles(directory, SOURCE, dict(zip(("test", "train"), config.split(), strict=True)))
