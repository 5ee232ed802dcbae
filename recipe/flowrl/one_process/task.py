"""What is trained on: prompts as tokens, and the reward of an answer's tokens."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch


@dataclass(frozen=True)
class Task:
    """P prompts and the reward of an answer to each.

    Attributes:
        model_dir: the base policy, which is also the reference.
        prompt_ids: (P, L), padded on the left.
        prompt_mask: (P, L).
        response_length: longest response, in tokens.
        ends: a response ends with the end-of-sequence token; False: each has ``response_length`` tokens.
        reward: from a prompt's number and the response's tokens, the end-of-sequence token included.
    """

    model_dir: Path
    prompt_ids: torch.Tensor
    prompt_mask: torch.Tensor
    response_length: int
    ends: bool
    reward: Callable[[int, tuple[int, ...]], float]


class PromptOrder:
    """All prompts again and again, each time in another order. ``position`` says how many were given out."""

    def __init__(self, prompts: int, seed: int) -> None:
        self.prompts, self.seed, self.position = prompts, seed, 0

    def next(self, count: int) -> np.ndarray:
        """(count,) numbers of prompts."""
        given = np.empty(count, dtype=np.int64)
        for index in range(count):
            epoch, place = divmod(self.position, self.prompts)
            given[index] = np.random.default_rng((self.seed, epoch)).permutation(self.prompts)[place]
            self.position += 1
        return given
