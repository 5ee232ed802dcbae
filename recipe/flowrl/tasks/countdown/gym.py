"""Countdown of ``reasoning-gym``, imported without the package's other 105 tasks.

``import reasoning_gym`` loads every task and with them eleven more packages, one of which is built from C sources.
Countdown needs none of these. It is therefore imported below empty stand-ins for the two packages that would load the
rest (``reasoning_gym`` and ``reasoning_gym.games``), which are gone from ``sys.modules`` afterwards.
"""

import importlib
import importlib.util
import sys
import threading
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any

_PACKAGE = "reasoning_gym"
_IMPORT = threading.Lock()
"""Rewards are computed in several threads; two that imported at once would meet each other's stand-ins."""


def countdown_dataset(**options: Any) -> Any:
    """``reasoning_gym.create_dataset("countdown", **options)``: a sequence of puzzles, each made when asked for."""
    return _factory().create_dataset("countdown", **options)


def countdown_score(expression: str, numbers: Sequence[int], target: int) -> float:
    """reasoning-gym's score: 1.0 for a right expression, 0.05 or 0.01 for any other.

    The scorer hands the text to sympy, which evaluates it as Python: pass only text that ``expressions.parse`` takes.
    """
    return _scorer()(expression, {"metadata": {"numbers": list(numbers), "target": target}})


@lru_cache(maxsize=1)
def _scorer() -> Any:
    return _factory().get_score_answer_fn("countdown")


def _factory() -> ModuleType:
    """The module ``reasoning_gym.factory``, with Countdown registered and nothing else."""
    with _IMPORT:
        return _import_factory()


@lru_cache(maxsize=1)
def _import_factory() -> ModuleType:
    spec = importlib.util.find_spec(_PACKAGE)
    if spec is None or spec.submodule_search_locations is None:
        raise ModuleNotFoundError("reasoning-gym is not installed: pip install --no-deps reasoning-gym==0.1.25")
    root = Path(spec.submodule_search_locations[0])
    before = _take_modules()
    try:
        for name, path in ((_PACKAGE, root), (f"{_PACKAGE}.games", root / "games")):
            stand_in = ModuleType(name)
            stand_in.__path__ = [str(path)]
            sys.modules[name] = stand_in
        importlib.import_module(f"{_PACKAGE}.games.countdown")
        return importlib.import_module(f"{_PACKAGE}.factory")
    finally:
        _take_modules()
        sys.modules.update(before)


def _take_modules() -> dict[str, ModuleType]:
    """Remove the package and its submodules from ``sys.modules``; returns what was there."""
    names = [name for name in sys.modules if name.split(".")[0] == _PACKAGE]
    return {name: sys.modules.pop(name) for name in names}
