"""The distribution task: short answers over a small vocabulary, a reward with several separated modes.

Every answer is :data:`LENGTH` tokens and every token of the vocabulary may be one, so that the answers can be
enumerated and the distribution that FlowRL aims at is known exactly.
"""

import itertools
import json
import random
from dataclasses import dataclass
from pathlib import Path

from recipe.flowrl.tasks.parquet import prompt_row, write_rows

SOURCE = "modes"
SYMBOLS = "abcdefghi"
"""What answers of a non-zero reward are made of; the rest of the vocabulary are special tokens."""
LENGTH = 2
"""Tokens of an answer."""
PROMPTS = SYMBOLS[:4]
HEIGHTS = (1.0, 0.9, 0.8, 0.7, 0.6)
"""Rewards of a prompt's modes."""
NEIGHBOUR = 0.3
"""Share of a mode's reward that an answer gets which differs from it in one symbol."""

VERSION = 2
"""Raised with every change of the task; part of the cache's key."""

_SEED = 5


@dataclass(frozen=True)
class Modes:
    """The modes of a prompt -> their rewards. No two of them share a symbol in the same place."""

    heights: dict[str, float]

    def reward(self, answer: str) -> float:
        """The reward of ``answer``: a mode's height, a share of it next to a mode, else 0."""
        if len(answer) != LENGTH:
            return 0.0
        best = 0.0
        for mode, height in self.heights.items():
            distance = sum(a != b for a, b in zip(answer, mode, strict=True))
            best = max(best, height if distance == 0 else height * NEIGHBOUR if distance == 1 else 0.0)
        return best

    @property
    def ground_truth(self) -> str:
        """What the reward function needs, as JSON."""
        return json.dumps(self.heights)


def modes_of(prompt: str) -> Modes:
    """The modes of one of :data:`PROMPTS`; the same at every call."""
    rng = random.Random(f"{_SEED}-{prompt}")
    columns = [rng.sample(SYMBOLS, len(HEIGHTS)) for _ in range(LENGTH)]
    return Modes(dict(zip(map("".join, zip(*columns, strict=True)), HEIGHTS, strict=True)))


def answers(vocabulary: list[str]) -> list[str]:
    """All answers, as text, in the order of :func:`itertools.product` over ``vocabulary`` (a text for each token)."""
    return ["".join(tokens) for tokens in itertools.product(vocabulary, repeat=LENGTH)]


def write_dataset(directory: Path) -> dict[str, Path]:
    """Write ``train.parquet`` and ``test.parquet`` in verl's schema: each prompt once in both.

    Returns:
        ``{"train": path, "test": path}``.
    """
    return {
        split: write_rows(
            Path(directory) / f"{split}.parquet",
            (
                prompt_row(SOURCE, "distribution", prompt, modes_of(prompt).ground_truth, index, split)
                for index, prompt in enumerate(PROMPTS)
            ),
        )
        for split in ("train", "test")
    }
