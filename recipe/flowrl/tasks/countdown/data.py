"""Countdown: reach a target from all the given numbers with + - * / and parentheses.

Puzzles come from ``reasoning-gym`` (Stojanovski et al., arXiv 2505.24760). Only those with several different solutions
are kept, so that the number of solutions a policy finds can be set against the number that exist.
"""

import json
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from itertools import combinations_with_replacement, count, product
from pathlib import Path
from typing import ClassVar

from recipe.flowrl.tasks.countdown import gym
from recipe.flowrl.tasks.countdown.expressions import canonical_form, enumerate_solutions
from recipe.flowrl.tasks.puzzles import write_puzzles

__all__ = [
    "CountdownConfig",
    "Puzzle",
    "canonical_form",
    "enumerate_solutions",
    "generate",
    "write_dataset",
]

SOURCE = "countdown"

_DRAWS_PER_PUZZLE = 50
"""reasoning-gym's draws, per puzzle asked for, after which the configuration is taken to have no more puzzles."""


@dataclass(frozen=True)
class CountdownConfig:
    """Which puzzles, and how many.

    ``VERSION`` is raised whenever the same configuration gives other rows; part of the cache's key.

    Attributes:
        numbers: count of numbers in a puzzle; all have to be used.
        min_value, max_value: range of the numbers, from 1.
        min_target, max_target: range of the target, from 1.
        min_solutions: puzzles with fewer different solutions are left out.
        train_size, test_size: puzzles in each split. No puzzle (numbers in any order, target) is in both.
        seed: of the generator.
    """

    VERSION: ClassVar[int] = 1

    numbers: int = 4
    min_value: int = 1
    max_value: int = 9
    min_target: int = 1
    max_target: int = 10
    min_solutions: int = 8
    train_size: int = 1024
    test_size: int = 128
    seed: int = 17

    def __post_init__(self) -> None:
        for name, low, high in (
            ("numbers", 2, 4),  # the solver takes minutes for five
            ("min_value", 1, self.max_value),
            ("min_target", 1, self.max_target),
            ("min_solutions", 1, None),
            ("train_size", 1, None),
            ("test_size", 1, None),
        ):
            value = getattr(self, name)
            if value < low or (high is not None and value > high):
                allowed = f">= {low}" if high is None else f"in {low}..{high}"
                raise ValueError(f"countdown: {name}={value}; allowed: an integer {allowed}")

    def split(self) -> tuple[list["Puzzle"], list["Puzzle"]]:
        """The puzzles of the tests and those of the training."""
        puzzles = list(generate(self))
        return puzzles[: self.test_size], puzzles[self.test_size :]

    def lessons(self, min_solutions: int, exclude: Collection["Puzzle"]) -> Iterator[tuple["Puzzle", list[str]]]:
        """Puzzles of the family that have ``min_solutions`` without a division, and these.

        They are learned in minutes, and exploring division is left to RL.
        """
        values = range(self.min_value, self.max_value + 1)
        targets = range(self.min_target, self.max_target + 1)
        for numbers, target in product(combinations_with_replacement(values, self.numbers), targets):
            solutions = enumerate_solutions(numbers, target)
            puzzle = Puzzle(numbers, target, len(solutions))
            solutions = [text for text in solutions if "/" not in text]
            if puzzle not in exclude and len(solutions) >= min_solutions:
                yield puzzle, solutions


@dataclass(frozen=True)
class Puzzle:
    """``numbers`` ascending; ``n_solutions`` different ways to reach ``target`` (see ``expressions``)."""

    numbers: tuple[int, ...]
    target: int
    n_solutions: int

    @property
    def prompt(self) -> str:
        """What the policy is asked."""
        return f"{' '.join(map(str, self.numbers))} -> {self.target}"

    @property
    def ground_truth(self) -> str:
        """What the reward function needs, as JSON."""
        return json.dumps({"numbers": self.numbers, "target": self.target, "n_solutions": self.n_solutions})

    @staticmethod
    def from_ground_truth(text: str) -> "Puzzle":
        """The puzzle that :attr:`ground_truth` describes. Raises ValueError if ``text`` isn't such a description."""
        try:
            facts = json.loads(text)
            return Puzzle(tuple(sorted(map(int, facts["numbers"]))), int(facts["target"]), int(facts["n_solutions"]))
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"countdown: ground_truth must be a JSON object with numbers, target and n_solutions, got {text!r}"
            ) from error

    def solutions(self) -> list[str]:
        """All of them, in canonical form."""
        return enumerate_solutions(self.numbers, self.target)


def generate(config: CountdownConfig) -> Iterator[Puzzle]:
    """Different puzzles, ``train_size + test_size`` of them, in the order in which reasoning-gym draws them.

    Raises:
        ValueError: the configuration has too few puzzles.
    """
    wanted = config.train_size + config.test_size
    drawn = gym.countdown_dataset(
        min_numbers=config.numbers,
        max_numbers=config.numbers,
        min_value=config.min_value,
        max_value=config.max_value,
        min_target=config.min_target,
        max_target=config.max_target,
        seed=config.seed,
        size=wanted * _DRAWS_PER_PUZZLE,
    )
    seen: set[tuple[tuple[int, ...], int]] = set()
    found = 0
    for index in count():
        if found == wanted:
            return
        if index == len(drawn):
            raise ValueError(
                f"countdown: only {found} different puzzles with {config.min_solutions} or more solutions in "
                f"{len(drawn)} draws, {wanted} wanted: lower train_size or min_solutions, or widen the ranges"
            )
        facts = drawn[index]["metadata"]
        numbers, target = tuple(sorted(facts["numbers"])), int(facts["target"])
        if (numbers, target) in seen:
            continue
        seen.add((numbers, target))
        n_solutions = len(enumerate_solutions(numbers, target))
        if n_solutions >= config.min_solutions:
            found += 1
            yield Puzzle(numbers, target, n_solutions)


def write_dataset(
    directory: Path, config: CountdownConfig, on_progress: Callable[[int, int], None] | None = None
) -> dict[str, Path]:
    """Write ``train.parquet`` and ``test.parquet`` in verl's schema.

    Args:
        directory: made if it isn't there.
        config: which puzzles.
        on_progress: called with the puzzles found so far and the puzzles wanted.

    Returns:
        ``{"train": path, "test": path}``.

    Raises:
        ValueError: the configuration has too few puzzles; nothing is written.
    """
    wanted = config.train_size + config.test_size
    puzzles = []
    for puzzle in generate(config):
        puzzles.append(puzzle)
        if on_progress:
            on_progress(len(puzzles), wanted)
    return write_puzzles(directory, SOURCE, {"test": puzzles[: config.test_size], "train": puzzles[config.test_size :]})
