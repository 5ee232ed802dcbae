"""Base policies of tasks of puzzles: the one that comes with the recipe, or one trained from another configuration.

Their weights are part of the recipe so that runs on different machines start from the same policy, which the same
training on another processor wouldn't give. :meth:`BasePolicy.ship` makes them anew (CONTRIBUTING.md).
"""

import json
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from recipe.flowrl.common import cache
from recipe.flowrl.common.files import write_json
from recipe.flowrl.tasks.puzzles import PuzzleTask
from recipe.flowrl.tasks.sft import SFTConfig, train
from recipe.flowrl.tasks.tiny_qwen2 import build

REPORT = "base_policy.json"
"""Written last into the model directory: what it was made from, and how good it is."""

WEIGHTS = "model.safetensors"


@dataclass(frozen=True)
class BasePolicy:
    """The base policy of a task.

    Attributes:
        task: what it is fine-tuned on.
        config: what the recipe's own is made from.
        shipped: directory of its :data:`WEIGHTS` in float16, which a run widens to float32, and its :data:`REPORT`.
    """

    task: PuzzleTask
    config: SFTConfig
    shipped: Path

    def ensure(self, directory: Path, say: Callable[[str], None], config: SFTConfig | None = None) -> Path:
        """Put the base policy into ``directory`` unless it is there, made from the same configuration.

        Args:
            directory: a link, afterwards, to a Hugging Face model directory (:mod:`recipe.flowrl.common.cache`).
            say: told of the progress, a line at a time.
            config: what it is made from; that of the recipe's own comes from its files, any other is trained.

        Returns:
            ``directory``.

        Raises:
            UserError: verl's SFT trainer failed; the message names its log.
        """
        config = config or self.config
        make = self._copy if self._shipped_report().get("key") == config.key() else self._train
        return cache.ensure(directory, config.key(), lambda target: make(target, config, say))

    def ship(
        self, say: Callable[[str], None] = print, config: SFTConfig | None = None, directory: Path | None = None
    ) -> None:
        """Train it; write its weights as float16, and the report of the rounded ones, to ``directory``."""
        from safetensors.torch import load_file, save_file

        config, directory = config or self.config, directory or self.shipped
        with tempfile.TemporaryDirectory() as scratch:
            target = Path(scratch, "model")
            target.mkdir()
            train(target, config, say)
            rounded = {name: tensor.half() for name, tensor in load_file(target / WEIGHTS).items()}
            save_file({name: tensor.float() for name, tensor in rounded.items()}, target / WEIGHTS, {"format": "pt"})
            report = self._report(target, config, say)
            directory.mkdir(exist_ok=True)
            save_file(rounded, directory / WEIGHTS, {"format": "pt"})
            write_json(directory / REPORT, report, indent=1)

    def _shipped_report(self) -> dict[str, Any]:
        return json.loads((self.shipped / REPORT).read_text())

    def _copy(self, target: Path, config: SFTConfig, say: Callable[[str], None]) -> None:
        from safetensors.torch import load_file, save_file

        build(target, config.model)
        weights = {name: tensor.float() for name, tensor in load_file(self.shipped / WEIGHTS).items()}
        save_file(weights, target / WEIGHTS, {"format": "pt"})
        report = self._shipped_report()
        write_json(target / REPORT, report, indent=1)
        say(f"base policy: the recipe's own, {_solves(report)}")

    def _train(self, target: Path, config: SFTConfig, say: Callable[[str], None]) -> None:
        train(target, config, say)
        write_json(target / REPORT, self._report(target, config, say), indent=1)

    def _report(self, model: Path, config: SFTConfig, say: Callable[[str], None]) -> dict[str, Any]:
        from safetensors.torch import load_file

        test, rest = config.puzzles.split()
        report = {
            "key": config.key(),
            "config": asdict(config),
            "parameters": sum(tensor.numel() for tensor in load_file(model / WEIGHTS).values()),
            "test": self.task.solve_rate(model, test, samples=4),
            "train": self.task.solve_rate(model, rest[: len(test)], samples=4),
        }
        say(f"base policy: {_solves(report)}")
        return report


def _solves(report: dict[str, Any]) -> str:
    test, training = report["test"]["solve_rate"], report["train"]["solve_rate"]
    return f"solves {test:.1%} of unseen puzzles at T = 1 ({training:.1%} of the training ones)"
