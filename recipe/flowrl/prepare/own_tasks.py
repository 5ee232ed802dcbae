"""Makes data sets and base policies of the recipe's own tasks, as a run does by itself."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from omegaconf import DictConfig

from recipe.flowrl.common import cache
from recipe.flowrl.reporting.console import RunConsole

Say = Callable[[str], None]


def _countdown(directory: Path, say: Say) -> None:
    from recipe.flowrl.tasks.countdown.data import CountdownConfig, write_dataset

    config = CountdownConfig()
    cache.ensure(directory, cache.fingerprint(config, config.VERSION), partial(write_dataset, config=config))


def _change(directory: Path, say: Say) -> None:
    from recipe.flowrl.tasks.change.data import ChangeConfig, write_dataset

    config = ChangeConfig()
    cache.ensure(directory, cache.fingerprint(config, config.VERSION), partial(write_dataset, config=config))


def _arithmetic(directory: Path, say: Say) -> None:
    from recipe.flowrl.tasks.arithmetic.data import VERSION, write_dataset

    cache.ensure(directory, cache.fingerprint(VERSION), write_dataset)


def _modes(directory: Path, say: Say) -> None:
    from recipe.flowrl.tasks.modes.data import VERSION, write_dataset

    cache.ensure(directory, cache.fingerprint(VERSION), write_dataset)


def _enumerable_qwen2(directory: Path, say: Say) -> None:
    from recipe.flowrl.tasks.modes.enumerable_qwen2 import ensure_model

    ensure_model(directory)


def _tiny_qwen2(directory: Path, say: Say) -> None:
    from recipe.flowrl.tasks.countdown.base_policy import BASE_POLICY

    BASE_POLICY.ensure(directory, say)


def _change_qwen2(directory: Path, say: Say) -> None:
    from recipe.flowrl.tasks.change.base_policy import BASE_POLICY

    BASE_POLICY.ensure(directory, say)


def _smollm2_135m(directory: Path, say: Say) -> None:
    from recipe.flowrl.tasks.arithmetic.smollm2 import ensure_model

    ensure_model(directory)


Makers = Mapping[str, Callable[[Path, Say], None]]
"""What can be made -> makes it in a directory, or finds it there."""

MAKERS: Makers = {
    "countdown": _countdown,
    "change": _change,
    "arithmetic": _arithmetic,
    "modes": _modes,
    "enumerable_qwen2": _enumerable_qwen2,
    "tiny_qwen2": _tiny_qwen2,
    "change_qwen2": _change_qwen2,
    "smollm2_135m": _smollm2_135m,
}
"""What any run can make for itself."""


def ensure(config: DictConfig, console: RunConsole, makers: Makers = MAKERS) -> None:
    """Make what ``config.prepare`` names, where the run uses it: a path of the user's own is left alone."""
    cache = Path(config.cache_dir)
    uses = f"{config.data.train_files} {config.data.val_files} {config.actor_rollout_ref.model.path}"
    for name in (config.prepare.data, config.prepare.model):
        if name is not None and str(cache / name) in uses:
            make(name, cache, console, makers)


def make(name: str, cache: Path, console: RunConsole, makers: Makers = MAKERS) -> Path:
    """Make one of ``makers`` in ``cache / name``; quick if it is there."""
    directory = cache / name
    with console.phase(f"preparing {name}"):
        makers[name](directory, console.message)
    return directory
