"""Tasks of puzzles, whose right answers can all be listed."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

import pyarrow.parquet as pq

from recipe.flowrl.tasks.parquet import prompt_row, write_rows


class Puzzle(Protocol):
    """One prompt, and what is known of it."""

    @property
    def prompt(self) -> str:
        """What the policy is asked."""

    @property
    def ground_truth(self) -> str:
        """What the reward function needs."""

    @property
    def n_solutions(self) -> int:
        """How many there are."""

    def solutions(self) -> list[str]:
        """All of them, each in the one spelling that counts as its own."""


class PuzzleFamily(Protocol):
    """Which puzzles there are: a dataclass of settings, all of which stand in the key of what is made from it."""

    VERSION: ClassVar[int]

    def split(self) -> tuple[list[Any], list[Any]]:
        """The puzzles of the tests and those of the training."""

    def lessons(self, min_solutions: int, exclude: Collection[Any]) -> Iterator[tuple[Any, list[str]]]:
        """Puzzles for a base policy, none of ``exclude``, each with ``min_solutions`` or more right answers to it."""


def write_puzzles(directory: Path, source: str, splits: Mapping[str, Sequence[Puzzle]]) -> dict[str, Path]:
    """Write ``SPLIT.parquet`` of each split in verl's schema, for the task whose ``data_source`` is ``source``.

    Returns:
        Each split's path.
    """
    return {
        split: write_rows(
            directory / f"{split}.parquet",
            (
                prompt_row(source, "arithmetic", puzzle.prompt, puzzle.ground_truth, index, split)
                for index, puzzle in enumerate(puzzles)
            ),
        )
        for split, puzzles in splits.items()
    }


@dataclass(frozen=True)
class PuzzleTask:
    """A task as its data files name it.

    Attributes:
        source: ``data_source`` of its rows.
        puzzle: from ``ground_truth`` of a row to the puzzle.
        compute_score: its reward, in verl's signature, which tells the ``solution`` of a right answer.
    """

    source: str
    puzzle: Callable[[str], Any]
    compute_score: Callable[..., dict[str, Any]]

    def read(self, path: Path) -> list[Any]:
        """The puzzles of a data file."""
        column = pq.read_table(path, columns=["reward_model"])["reward_model"].to_pylist()
        return [self.puzzle(entry["ground_truth"]) for entry in column]

    def score(self, puzzle: Puzzle, answer: str) -> dict[str, Any]:
        """What the reward says of an answer."""
        return self.compute_score(self.source, answer, puzzle.ground_truth)

    def solutions(self, texts: Sequence[str], puzzles: Sequence[Puzzle]) -> list[list[str]]:
        """For each puzzle the solution that each answer is, "" where it is wrong.

        Args:
            texts: the answers, equally many for each puzzle, puzzle by puzzle.
            puzzles: in the same order.
        """
        samples = len(texts) // len(puzzles)
        found = []
        for index, puzzle in enumerate(puzzles):
            answers = texts[index * samples : (index + 1) * samples]
            forms = {answer: self.score(puzzle, answer)["solution"] for answer in set(answers)}
            found.append([forms[answer] for answer in answers])
        return found

    def solve_rate(self, model_dir: Path, puzzles: Sequence[Puzzle], samples: int) -> dict[str, float]:
        """Sample each puzzle ``samples`` times at T = 1.

        Returns:
            ``puzzles``; ``solve_rate``, the share of right answers; ``distinct_solutions``, found per puzzle.
        """
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        from recipe.flowrl.tasks.sampling import sample

        model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(model_dir)
        prompts = [puzzle.prompt for puzzle in puzzles]
        drawn = sample(model, tokenizer, prompts, samples, temperature=1.0, max_new_tokens=24)
        found = self.solutions(drawn.texts, puzzles)
        right = [bool(solution) for row in found for solution in row]
        return {
            "puzzles": len(puzzles),
            "solve_rate": sum(right) / len(right),
            "distinct_solutions": sum(len(set(row) - {""}) for row in found) / len(found),
        }
