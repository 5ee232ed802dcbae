"""Bad input is refused here, in one or two lines, before Ray starts and before verl is imported."""

import pickle
from collections.abc import Iterator
from pathlib import Path

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from recipe.flowrl.errors import UserError
from recipe.flowrl.preflight.batches import check_batches
from recipe.flowrl.preflight.checkpoint import check_checkpoint_space, check_directories, check_resume
from recipe.flowrl.preflight.data import check_data, first_rows
from recipe.flowrl.preflight.machine import check_machine, check_memory, check_ray_slots
from recipe.flowrl.preflight.model import check_model
from recipe.flowrl.preflight.options import check_options
from recipe.flowrl.preflight.overrides import check_arguments, explain
from recipe.flowrl.preflight.registries import check_registered_names
from recipe.flowrl.preflight.reward import check_reward, check_reward_source

__all__ = ["check", "check_arguments", "check_files", "explain", "made_by_run", "resolved"]


def check(config: DictConfig, here: bool = True) -> list[str]:
    """Check all that can be checked before the run makes its own inputs, the cheap first. Writes nothing.

    Args:
        config: of the run.
        here: whether it is to run on this machine; a login node needn't have what the nodes have.

    Returns:
        Warnings.

    Raises:
        UserError: the run can't work.
    """
    config = resolved(config)
    warnings = [*check_options(config), *check_registered_names(config)]
    check_data(config, yet_to_be_made=made_by_run(config, "data"))
    warnings += check_model(config, yet_to_be_made=made_by_run(config, "model"))[1]
    check_batches(config)
    check_reward_source(config)
    check_directories(config)
    check_resume(config)
    if here:
        check_machine(config)
    else:
        check_ray_slots(config)
    return warnings


def check_files(config: DictConfig) -> list[str]:
    """Check data, model and reward function, once the run has made those that it makes itself.

    Runs the reward function, and with it may import verl: the environment has to be set.

    Args:
        config: of the run, resolved.

    Returns:
        Warnings that :func:`check` couldn't give.

    Raises:
        UserError: the run can't work.
    """
    check_data(config)
    size, warnings = check_model(config)
    if size is not None:
        check_checkpoint_space(config, size.parameters)
        if config.trainer.device == "cpu":
            check_memory(config, size.parameters)
    check_reward(config, first_rows(config))
    given_before = check_model(config, yet_to_be_made=made_by_run(config, "model"))[1]
    return [warning for warning in warnings if warning not in given_before]


def made_by_run(config: DictConfig, kind: str) -> Path | None:
    """The directory in which the run makes its data or its model, if it does."""
    name = config.prepare[kind]
    return Path(config.cache_dir).expanduser() / name if name is not None else None


def resolved(config: DictConfig) -> DictConfig:
    """A resolved copy.

    Raises:
        UserError: an option can't be resolved.
    """
    config = pickle.loads(pickle.dumps(config))  # ten times as fast as deepcopy
    try:
        OmegaConf.resolve(config)
    except OmegaConfBaseException as error:
        failing = dict(_unresolvable(config))
        # Others may refer to the one at fault.
        at_fault = [path for path, value in failing.items() if not any(other in value for other in failing)]
        raise UserError(f"{next(iter(at_fault or failing), 'configuration')}: {str(error).splitlines()[0]}") from error
    return config


def _unresolvable(section: DictConfig, path: str = "") -> Iterator[tuple[str, str]]:
    """Dotted path and value of each option whose value can't be resolved."""
    for name in section:
        try:
            value = section[name]
        except MissingMandatoryValue:
            continue
        except OmegaConfBaseException:
            yield f"{path}{name}", str(OmegaConf.to_container(section, resolve=False)[name])
            continue
        if isinstance(value, DictConfig):
            yield from _unresolvable(value, f"{path}{name}.")
