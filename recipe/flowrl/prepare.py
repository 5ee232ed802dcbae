"""Make data sets and base policies: ``python -m recipe.flowrl.prepare countdown tiny_qwen2`` (a run does so itself)."""

import argparse
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

from omegaconf import DictConfig

from recipe.flowrl import cache
from recipe.flowrl.errors import exit_status_of
from recipe.flowrl.reporting.console import RunConsole
from recipe.flowrl.signals import ends_with_its_children

Say = Callable[[str], None]


def _countdown(directory: Path, say: Say) -> None:
    from recipe.flowrl.data.countdown import VERSION, CountdownConfig, write_dataset

    config = CountdownConfig()
    cache.ensure(directory, cache.fingerprint(config, VERSION), partial(write_dataset, config=config))


def _arithmetic(directory: Path, say: Say) -> None:
    from recipe.flowrl.data.arithmetic import VERSION, write_dataset

    cache.ensure(directory, cache.fingerprint(VERSION), write_dataset)


def _modes(directory: Path, say: Say) -> None:
    from recipe.flowrl.data.modes import VERSION, write_dataset

    cache.ensure(directory, cache.fingerprint(VERSION), write_dataset)


def _enumerable_qwen2(directory: Path, say: Say) -> None:
    from recipe.flowrl.models.enumerable_qwen2 import ensure_model

    ensure_model(directory)


def _tiny_qwen2(directory: Path, say: Say) -> None:
    from recipe.flowrl.models.sft import ensure_base_policy

    ensure_base_policy(directory, say)


def _smollm2_135m(directory: Path, say: Say) -> None:
    from recipe.flowrl.models.smollm2 import ensure_model

    ensure_model(directory)


MAKERS: dict[str, Callable[[Path, Say], None]] = {
    "countdown": _countdown,
    "arithmetic": _arithmetic,
    "modes": _modes,
    "enumerable_qwen2": _enumerable_qwen2,
    "tiny_qwen2": _tiny_qwen2,
    "smollm2_135m": _smollm2_135m,
}
"""What can be made -> makes it in a directory, or finds it there."""


def ensure(config: DictConfig, console: RunConsole) -> None:
    """Make what ``config.prepare`` names, where the run uses it: a path of the user's own is left alone."""
    cache = Path(config.cache_dir)
    uses = f"{config.data.train_files} {config.data.val_files} {config.actor_rollout_ref.model.path}"
    for name in (config.prepare.data, config.prepare.model):
        if name is not None and str(cache / name) in uses:
            make(name, cache, console)


def make(name: str, cache: Path, console: RunConsole) -> Path:
    """Make one of :data:`MAKERS` in ``cache / name``; quick if it is there."""
    directory = cache / name
    with console.phase(f"preparing {name}"):
        MAKERS[name](directory, console.message)
    return directory


def main(arguments: list[str]) -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m recipe.flowrl.prepare", description=__doc__)
    parser.add_argument("names", nargs="+", choices=sorted(MAKERS), metavar="NAME", help=", ".join(MAKERS))
    default = os.environ.get("FLOWRL_CACHE", Path.home() / ".cache" / "flowrl")
    parser.add_argument("--cache", type=Path, default=default, help="directory (default: %(default)s)")
    options = parser.parse_args(arguments)
    try:
        with ends_with_its_children(), RunConsole(sys.stdout) as console:
            for name in options.names:
                console.message(f"{name}: {make(name, options.cache, console)}")
    except BaseException as error:
        return exit_status_of(error)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
