"""Our systems: which evaluation stands for which row of which table."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from recipe.flowrl.common.errors import UserError
from recipe.flowrl.diversity.evaluations import read_evaluation, read_json

_CHECKPOINT = re.compile(r"([^/]+)/([^/]+)/checkpoints/global_step_\d+")
_DIVERSITY_FILE = "diversity.json"


@dataclass(frozen=True)
class System:
    """An evaluated system: ``name`` as an algorithm's (``flowrl``), ``group`` as an experiment's (``math_7b``).

    ``diversity``: what ``recipe.flowrl.diversity`` found, None if it hasn't run.
    """

    name: str
    group: str
    directory: Path
    protocol: dict[str, Any]
    benchmarks: dict[str, dict[str, Any]]
    diversity: dict[str, Any] | None
    suffix: str = ""
    """Tells it from another system of the same name."""

    @property
    def label(self) -> str:
        """What it is called where only ours are shown."""
        return f"{self.name}{self.suffix}"

    def benchmark_hash(self, benchmark: str) -> Any:
        """Of the file that the problems are from, as the protocol has it."""
        entry = self.protocol.get("benchmarks", {}).get(benchmark)
        return entry.get("sha256") if isinstance(entry, dict) else entry


def read_systems(arguments: Sequence[str]) -> list[System]:
    """The systems that ``DIR``, ``NAME=DIR`` and ``GROUP/NAME=DIR`` name.

    Without them GROUP and NAME are the experiment and the algorithm of the checkpoint that was evaluated, or else the
    last two parts of DIR.

    Raises:
        UserError: no such directory, or none that an evaluation has written.
    """
    systems: list[System] = []
    for argument in arguments:
        label, _, labelled = argument.partition("=")
        if Path(argument).is_dir():
            systems.append(read_system(Path(argument)))
        elif Path(labelled).is_dir() and labelled:
            systems.append(read_system(Path(labelled), label))
        else:
            raise UserError(f"{argument}: no such directory; expected EVALUATION or NAME=EVALUATION")
    names = [(system.group, system.name) for system in systems]
    return [_disambiguated(s) if names.count((s.group, s.name)) > 1 else s for s in systems]


def read_system(directory: Path, label: str = "") -> System:
    """Read an evaluation and, if there is one, its diversity. ``label``: ``NAME``, ``GROUP/NAME`` or empty."""
    evaluation = read_evaluation(directory)
    path = directory / _DIVERSITY_FILE
    group, name = _identity(evaluation.protocol, directory)
    if label:
        *given, name = label.split("/")
        group = "/".join(given) or group
    diversity = read_json(path, "") if path.exists() else None
    return System(name, group, directory, evaluation.protocol, evaluation.benchmarks, diversity)


def _disambiguated(system: System) -> System:
    facts = system.protocol
    return replace(system, suffix=f" (n={facts.get('n')}, T={facts.get('temperature')})")


def _identity(protocol: dict[str, Any], directory: Path) -> tuple[str, str]:
    checkpoint = _CHECKPOINT.search(str(protocol.get("model", "")))
    if checkpoint:
        return checkpoint.group(1), checkpoint.group(2)
    absolute = directory.absolute()
    return absolute.parent.name, absolute.name
