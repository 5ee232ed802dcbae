"""Names that verl and we register, read from the source: verl looks them up only after the first rollout."""

import ast
import functools
import os
from collections.abc import Iterator, Sequence
from importlib.metadata import entry_points
from importlib.util import find_spec
from netrc import NetrcParseError, netrc
from typing import Any
from urllib.parse import urlsplit

from omegaconf import DictConfig, OmegaConf

from recipe.flowrl.common.errors import UserError
from recipe.flowrl.common.project import PROJECT
from recipe.flowrl.common.rules import guess
from verl_ext.source import verl_directory

_ROLLOUT = "actor_rollout_ref.rollout"

_REGISTRIES = {
    "trainer.v1.trainer_mode": ("register_trainer", "trainer/ppo/v1/trainer_*.py"),
    "algorithm.adv_estimator": ("register_adv_est", "trainer/ppo/core_algos.py"),
    "actor_rollout_ref.actor.policy_loss.loss_mode": ("register_policy_loss", "trainer/ppo/core_algos.py"),
    "reward.reward_manager.name": ("register|register_manager", "experimental/reward_loop/reward_manager/*.py"),
    f"{_ROLLOUT}.agent.default_agent_loop": ("register", "experimental/agent_loop/*_loop.py"),
    f"{_ROLLOUT}.multi_turn.format": ("ToolParser.register", "experimental/agent_loop/tool_parser.py"),
    f"{_ROLLOUT}.checkpoint_engine.backend": ("CheckpointEngineRegistry.register", "checkpoint_engine/*.py"),
}
"""Option -> the decorators that register its values, and verl's source files in which they are used."""

_CUSTOM = {
    "reward.reward_manager.name": ("reward.reward_manager.source", "importlib"),
    f"{_ROLLOUT}.agent.default_agent_loop": (f"{_ROLLOUT}.agent.agent_loop_config_path", None),
    f"{_ROLLOUT}.multi_turn.format": (f"{_ROLLOUT}.multi_turn.function_tool_path", None),
    f"{_ROLLOUT}.checkpoint_engine.backend": (f"{_ROLLOUT}.checkpoint_engine.custom_backend_module", None),
}
"""Option -> the one that names where other values come from, and its value then (None: any)."""

_OWN = PROJECT / "recipe" / "flowrl" / "advantages.py"
"""Registers values of its own."""

_LOGGER_PACKAGES = ("wandb", "mlflow", "swanlab", "tensorboard", "clearml", "trackio")
"""The loggers of ``trainer.logger`` that need a package of the same name."""


def check_registered_names(config: DictConfig) -> list[str]:
    """Check the options whose values verl finds in a registry, and the loggers.

    Returns:
        Warnings: names that verl itself doesn't know, where another module may register them.

    Raises:
        UserError: an unknown name, or a logger whose package isn't installed.
    """
    warnings = []
    for key in _REGISTRIES:
        name, known = OmegaConf.select(config, key), registered_names(key)
        if name in known or _comes_from_elsewhere(config, key):
            continue
        if modules := _other_modules(config):
            warnings.append(f"{key}={name}: not one of verl's own; {' or '.join(modules)} has to register it")
        else:
            raise UserError(f"{key}={name}: unknown{guess(name, known)}; verl has {', '.join(known)}")
    _check_rollout_engine(config)
    _check_rollout_correction(config)
    _check_loggers(config)
    return warnings


def _comes_from_elsewhere(config: DictConfig, key: str) -> bool:
    """Whether the value of ``key`` is defined in a file or module of the user's."""
    if key not in _CUSTOM:
        return False
    source, needed = _CUSTOM[key]
    value = OmegaConf.select(config, source)
    return value is not None and needed in (None, value)


def _check_rollout_engine(config: DictConfig) -> None:
    name, known = OmegaConf.select(config, f"{_ROLLOUT}.name"), rollout_engines()
    if name is None:  # verl's default, "missing"; a cluster's file names one
        return
    if name not in known:
        raise UserError(f"{_ROLLOUT}.name={name}: unknown{guess(name, known)}; verl has {', '.join(known)}")
    package = {"trtllm": "tensorrt_llm"}.get(name, name)
    if find_spec(package) is None:
        raise UserError(f"{_ROLLOUT}.name={name}: its package {package} isn't installed; {_ROLLOUT}.name=vllm is")


def _check_rollout_correction(config: DictConfig) -> None:
    """``rollout_is`` is a level, ``rollout_rs`` one or more criteria with commas between them."""
    prefix = "algorithm.rollout_correction"
    correction = config.algorithm.get("rollout_correction") or {}
    criteria = [name.strip() for name in str(correction.get("rollout_rs") or "").split(",") if name.strip()]
    level = correction.get("rollout_is")
    for key, given, known in (
        ("rollout_is", [] if level is None else [level], ["token", "sequence"]),
        ("rollout_rs", criteria, rejection_criteria()),
        ("loss_type", [correction.get("loss_type", "ppo_clip")], ["ppo_clip", "reinforce"]),
    ):
        for name in given:
            if name not in known:
                raise UserError(f"{prefix}.{key}={name}: unknown{guess(str(name), known)}; verl has {', '.join(known)}")


@functools.cache
def rollout_engines() -> list[str]:
    """The values of ``rollout.name``, from the source of verl's table of rollouts."""
    table = _assigned("workers/rollout/base.py", "_ROLLOUT_REGISTRY")
    return [name for name, mode in table if mode == "async"]


@functools.cache
def rejection_criteria() -> list[str]:
    """The values of ``rollout_correction.rollout_rs``, from verl's source."""
    return sorted(_assigned("trainer/ppo/rollout_corr_helper.py", "SUPPORTED_ROLLOUT_RS_OPTIONS"))


def _assigned(path: str, name: str) -> Any:
    """The literal that a module of verl assigns to ``name``."""
    for node in ast.walk(ast.parse((verl_directory() / path).read_text())):
        target = getattr(node, "target", None) or next(iter(getattr(node, "targets", ())), None)
        if isinstance(node, ast.Assign | ast.AnnAssign) and isinstance(target, ast.Name) and target.id == name:
            if node.value is not None:
                return ast.literal_eval(node.value)
    raise LookupError(f"verl/{path} doesn't say what {name} is")


@functools.cache
def registered_names(key: str) -> list[str]:
    """The values of the option ``key`` that verl and we register, in the order of the source."""
    decorators, pattern = _REGISTRIES[key]
    paths = [*sorted(verl_directory().glob(pattern)), _OWN]
    names = [name for path in paths for name in _decorated(path.read_text(), decorators.split("|"))]
    return list(dict.fromkeys(names))


def _decorated(source: str, decorators: Sequence[str]) -> Iterator[str]:
    """The arguments of ``@decorator("name")`` and ``@decorator(Enum.MEMBER)`` in ``source``."""
    definitions = ast.parse(source).body
    members = {
        f"{definition.name}.{target.id}": member.value.value
        for definition in definitions
        if isinstance(definition, ast.ClassDef)
        for member in definition.body
        if isinstance(member, ast.Assign) and isinstance(member.value, ast.Constant)
        for target in member.targets
        if isinstance(target, ast.Name)
    }
    for definition in definitions:
        for call in getattr(definition, "decorator_list", ()):
            if isinstance(call, ast.Call) and ast.unparse(call.func) in decorators:
                argument = call.args[0]
                yield str(argument.value if isinstance(argument, ast.Constant) else members[ast.unparse(argument)])


def _other_modules(config: DictConfig) -> list[str]:
    """Modules beside ours that verl imports in its processes, and that may register names."""
    external = OmegaConf.select(config, "actor_rollout_ref.model.external_lib") or []
    from_environment = OmegaConf.select(config, "ray_kwargs.ray_init.runtime_env.env_vars.VERL_USE_EXTERNAL_MODULES")
    modules = [external] if isinstance(external, str) else list(external)
    modules += (from_environment or "").split(",")
    modules += [point.value for point in entry_points(group="verl.plugins")]
    return [module for module in modules if module and module.split(".")[0] != "verl_ext"]


def _check_loggers(config: DictConfig) -> None:
    loggers = config.trainer.logger or []
    known = supported_loggers()
    for name in [loggers] if isinstance(loggers, str) else loggers:
        if name not in known:
            raise UserError(f"trainer.logger: {name!r} is unknown{guess(name, known)}; verl has {', '.join(known)}")
        if name in _LOGGER_PACKAGES and find_spec(name) is None:
            raise UserError(f"trainer.logger: the package of {name!r} isn't installed: pip install {name}")
        if name == "wandb" and not _wandb_can_start():
            raise UserError(
                "trainer.logger: wandb has no key: `wandb login`, or set WANDB_API_KEY, or WANDB_MODE=offline, with "
                "which `wandb sync` uploads the run later"
            )


def _wandb_can_start() -> bool:
    """Whether W&B has a key or needs none. It would ask for one minutes into the run, where nobody can answer."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_MODE") in ("offline", "disabled", "dryrun"):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    try:
        return netrc(os.environ.get("NETRC")).authenticators(host) is not None
    except (OSError, NetrcParseError):
        return False


def supported_loggers() -> list[str]:
    """The loggers that verl has."""
    return _assigned("utils/tracking.py", "supported_backend")
