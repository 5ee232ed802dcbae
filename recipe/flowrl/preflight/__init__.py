"""Bad input is refused here, in one or two lines, before Ray starts and before verl is imported."""

import pickle
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from recipe.flowrl.common.errors import UserError
from recipe.flowrl.preflight.accelerator import choose_attention
from recipe.flowrl.preflight.batches import check_batches
from recipe.flowrl.preflight.data_files import check_data, not_looked_at, rows_by_source
from recipe.flowrl.preflight.loss_options import check_loss_options
from recipe.flowrl.preflight.machine import check_machine, check_memory, check_ray_slots
from recipe.flowrl.preflight.model_files import check_model
from recipe.flowrl.preflight.options import check_options, saturated_target
from recipe.flowrl.preflight.overrides import check_arguments, explain
from recipe.flowrl.preflight.registries import check_registered_names
from recipe.flowrl.preflight.reward import check_reward, check_reward_source
from recipe.flowrl.preflight.rollout_correction import check_rollout_correction
from recipe.flowrl.preflight.run_directory import check_checkpoint_space, check_directories, check_resume
from recipe.flowrl.preflight.separate import check_mode
from recipe.flowrl.preflight.user_modules import check_user_modules
from recipe.flowrl.prepare.own_tasks import MAKERS

__all__ = ["check", "check_arguments", "check_files", "explain", "made_by_run", "resolved", "saturated_target"]


def check(config: DictConfig, here: bool = True, makers: Collection[str] = tuple(MAKERS)) -> list[str]:
    """Check all that can be checked before the run makes its own inputs, the cheap first. Writes nothing.

    Args:
        config: of the run.
        here: whether it is to run on this machine; a login node needn't have what the nodes have.
        makers: what the run can make for itself.

    Returns:
        Warnings.

    Raises:
        UserError: the run can't work.
    """
    config = resolved(config)
    warnings = [*check_options(config, makers), *check_registered_names(config), *check_loss_options(config)]
    warnings += check_rollout_correction(config)
    check_data(config, yet_to_be_made=made_by_run(config, "data"))
    warnings += check_model(config, yet_to_be_made=made_by_run(config, "model"))[1]
    check_mode(config)
    check_batches(config)
    check_reward_source(config)
    check_user_modules(config)
    check_directories(config)
    check_resume(config)
    if here:
        check_machine(config)
        warnings += choose_attention(config)[1]
    else:
        check_ray_slots(config)
    return warnings


def check_files(
    config: DictConfig, said: Collection[str] = (), say: Callable[[str], None] = lambda line: None
) -> list[str]:
    """Check data, model and reward function, once the run has made those that it makes itself.

    Runs the reward function, and with it may import verl: the environment has to be set.

    Args:
        config: of the run, resolved.
        said: the warnings of :func:`check`, which needn't be said again.
        say: gets a line for each reward function: the data sources that it scores.

    Returns:
        The other warnings.

    Raises:
        UserError: the run can't work.
    """
    check_data(config)
    size, warnings = check_model(config)
    if size is not None:
        check_checkpoint_space(config, size.parameters)
        if config.trainer.device == "cpu":
            check_memory(config, size.parameters)
    for line in check_reward(config, rows_by_source(config), not_looked_at(config)):
        say(line)
    return [warning for warning in warnings if warning not in said]


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
