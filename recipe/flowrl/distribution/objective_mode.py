"""The task in one process (:mod:`recipe.flowrl.one_process`): what is measured is the objective.

What the stack adds (Ray, vLLM, FSDP, weight sync) is left out.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from omegaconf import DictConfig

from recipe.flowrl.distribution.exact import Enumeration
from recipe.flowrl.one_process.trainer import Trainer

STEPS = 400


@dataclass(frozen=True)
class Point:
    """The policy after ``step`` steps: ``log_probs`` ``(P, N)`` and ``log_z`` ``(P,)``, None without a head."""

    step: int
    samples: int
    log_probs: torch.Tensor
    log_z: torch.Tensor | None


def train(
    config: DictConfig, enumeration: Enumeration, every: int, staleness: int, on_step: Callable[[int, int], None]
) -> list[Point]:
    """Train for :data:`STEPS` steps.

    Args:
        config: a run's, composed (:mod:`recipe.flowrl.distribution.setup`).
        enumeration: of the task.
        every: steps between two points.
        staleness: see :class:`Trainer`.
        on_step: called with the step and their number.

    Returns:
        The points, the untrained policy first, the trained one last.
    """
    config.trainer.total_training_steps = STEPS
    trainer = Trainer(config, enumeration.task(), staleness)

    def point() -> Point:
        log_probs = enumeration.log_probs(trainer.policy)
        return Point(trainer.steps_done, trainer.samples, log_probs, trainer.log_z())

    points = [point()]
    for step in range(1, STEPS + 1):
        trainer.step()
        on_step(step, STEPS)
        if step % every == 0 or step == STEPS:
            points.append(point())
    return points
