"""What is wrong with the command line, in one or two lines instead of Hydra's many."""

import difflib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra._internal.utils import get_args
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from recipe.flowrl.common.errors import UserError
from recipe.flowrl.common.rules import guess

CONFIG_NAME = "flowrl"


def check_arguments(arguments: Sequence[str]) -> None:
    """Check what Hydra's own flags ask for.

    Args:
        arguments: of the command line, without the program's name.

    Raises:
        UserError: a sweep: a launch ends with the signal handlers and the processes of the next one gone.
    """
    if get_args(arguments).multirun:
        raise UserError(
            "--multirun: a process does one run: start one command for each, each with a run_dir of its own"
        )


def explain(error: Exception, arguments: Sequence[str], config_dir: Path) -> UserError:
    """Find the override for which Hydra refused to compose the configuration.

    Args:
        error: what Hydra (or OmegaConf) raised.
        arguments: of the command line, without the program's name.
        config_dir: the directory that was composed from.

    Returns:
        An error that names the first two overrides at fault, and what to write instead. If none is at fault by itself,
        Hydra's message in one line.
    """
    options, found = get_args(arguments), []
    if not (options.config_dir or options.config_path or options.config_name):
        with initialize_config_dir(str(config_dir), version_base=None):
            found = list(problems(options.overrides, config_dir))
    message = "\n".join(found[:2]) or f"the configuration can't be composed: {' '.join(str(error).split())}"
    explained = UserError(message)
    explained.__cause__ = error
    return explained


def problems(overrides: Sequence[str], config_dir: Path) -> Iterator[str]:
    """What is wrong with each of the overrides with which something is. Needs Hydra to be initialised."""
    parser, values, choices = OverridesParser.create(), [], []
    for text in overrides:
        try:
            override = parser.parse_override(text)
        except HydraException:
            yield _unreadable(text)
            continue
        if not _options_of(override.key_or_group):
            values.append(override)
        elif wrong := _wrong_choice(override, config_dir):
            yield wrong
        else:
            choices.append(text)
    try:
        config = compose(CONFIG_NAME, choices)
    except HydraException:
        return
    for override in values:
        if wrong := _wrong_key(override, config):
            yield wrong


def _unreadable(text: str) -> str:
    if "=" not in text and not text.startswith("~"):
        return f"{text!r} is no override: write {text}=VALUE"
    key = text.split("=", 1)[0]
    return f"{text!r} can't be read: put a value with special characters in two pairs of quotes, {key}='\"...\"'"


def _wrong_choice(override: Override, config_dir: Path) -> str | None:
    group, chosen = override.key_or_group, override.value()
    if override.is_delete() or chosen is None or chosen in _options_of(group):
        return None
    # verl has groups of the same names, of which nothing is to be chosen here.
    options = sorted(path.stem for path in (config_dir / group).glob("*.yaml")) or _options_of(group)
    return f"{override.input_line}: no such option{guess(chosen, options)}; {group} is one of {', '.join(options)}"


def _wrong_key(override: Override, config: DictConfig) -> str | None:
    key, line = override.key_or_group, override.input_line
    if key.startswith("hydra."):
        return None
    if _exists(config, key):
        return f"{line}: {key} is there already: leave out the '+'" if override.is_add() else None
    if override.is_add() or override.is_force_add():
        return None
    if key.startswith("flowrl.") and config.flowrl is None:
        return f"{line}: the chosen algorithm isn't FlowRL: leave it out, or choose algo=flowrl"
    similar = _similar(key, [*_keys(config), *_groups()])
    suggestion = f"did you mean {' or '.join(similar)}?" if similar else "a new key is added with a '+' in front"
    return f"{line}: there is no key {key}; {suggestion}"


def _exists(config: DictConfig, key: str) -> bool:
    parent, _, leaf = key.rpartition(".")
    section = OmegaConf.select(config, parent) if parent else config
    return isinstance(section, DictConfig) and leaf in section


def _keys(config: DictConfig) -> Iterator[str]:
    """All dotted paths of ``config``."""

    def walk(section: dict, prefix: str) -> Iterator[str]:
        for name, value in section.items():
            yield f"{prefix}{name}"
            if isinstance(value, dict):
                yield from walk(value, f"{prefix}{name}.")

    return walk(OmegaConf.to_container(config, resolve=False), "")


def _similar(key: str, known: Iterable[str]) -> list[str]:
    """The up to three known keys that ``key`` may stand for: it lacks their beginning, or is misspelt."""
    known = list(known)
    endings = sorted((name for name in known if name.endswith(f".{key}")), key=len)
    return endings[:3] or difflib.get_close_matches(key, known, n=1, cutoff=0.7)


def _groups() -> list[str]:
    return GlobalHydra.instance().config_loader().list_groups("")


def _options_of(group: str) -> list[str]:
    return GlobalHydra.instance().config_loader().get_group_options(group)
