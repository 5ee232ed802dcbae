"""Earlier groups of rollouts, and which of them come again: by reward and by recency."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from math import log
from typing import Any, Generic, TypeVar

import numpy as np

Rows = TypeVar("Rows")


@dataclass(frozen=True)
class ReplayConfig:
    """Which groups come again.

    Attributes:
        share: of a batch's prompts, in (0, 1).
        size: groups that are kept, the newest.
        reward_temperature: a group is drawn in proportion to exp(its mean reward / this); None: whatever its reward.
        half_life: steps after which it is drawn half as often; None: whatever its age.
        seed: of the draws.
    """

    share: float
    size: int
    reward_temperature: float | None
    half_life: float | None
    seed: int = 0

    def of_step(self, prompts: int, mini: int) -> int:
        """How many of a step's prompts are replayed, in mini-batches of ``mini`` prompts, once there are enough."""
        return prompts // mini * earlier_of(mini, self.share)


def earlier_of(mini: int, share: float) -> int:
    """How many of a mini-batch of so many prompts are replayed."""
    return round(share * mini)


@dataclass(frozen=True)
class Group(Generic[Rows]):
    """A prompt's rollouts, their mean reward, and the step that trained on them first."""

    rows: Rows
    reward: float
    step: int


class ReplayMemory(Generic[Rows]):
    """Keeps the newest groups, and draws among them."""

    def __init__(self, config: ReplayConfig) -> None:
        self.config = config
        self._groups: deque[Group[Rows]] = deque(maxlen=config.size)

    def __len__(self) -> int:
        return len(self._groups)

    def add(self, rows: Rows, reward: float, step: int) -> None:
        """Keep a group; the oldest makes room for it."""
        self._groups.append(Group(rows, reward, step))

    def draw(self, count: int, step: int) -> list[Group[Rows]]:
        """``count`` different groups for a step, one after the other in proportion to their weights.

        The same for the same groups, step and seed. Nothing while there are fewer than ``count``.
        """
        if count > len(self._groups):
            return []
        groups = list(self._groups)
        # The largest of log-weight plus Gumbel noise are such a draw (Kool et al., arXiv 1903.06059).
        noise = np.random.default_rng((self.config.seed, step)).gumbel(size=len(groups))
        order = np.argsort(-(self._log_weights(groups, step) + noise), kind="stable")
        return [groups[number] for number in order[:count]]

    def state(self) -> list[tuple[Rows, float, int]]:
        """All that :meth:`load` needs."""
        return [(group.rows, group.reward, group.step) for group in self._groups]

    def load(self, state: Sequence[tuple[Rows, float, int]]) -> None:
        """Keep what :meth:`state` returned, and nothing else."""
        self._groups.clear()
        for rows, reward, step in state:
            self.add(rows, reward, step)

    def _log_weights(self, groups: Sequence[Group[Any]], step: int) -> np.ndarray:
        weights = np.zeros(len(groups))
        if self.config.reward_temperature is not None:
            weights += np.array([group.reward for group in groups]) / self.config.reward_temperature
        if self.config.half_life is not None:
            weights -= log(2) * np.array([step - group.step for group in groups]) / self.config.half_life
        return weights
