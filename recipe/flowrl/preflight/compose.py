"""Compose a run's configuration outside of Hydra's own start, for programs that only look at it."""

from collections.abc import Sequence

from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from recipe.flowrl import preflight
from recipe.flowrl.common.project import CONFIG_DIR
from verl_ext.source import register_verl_configs


def compose_run(overrides: Sequence[str]) -> DictConfig:
    """The resolved configuration that these overrides give a run.

    Raises:
        UserError: they can't be composed.
    """
    try:
        config = compose_unresolved(overrides)
        OmegaConf.resolve(config)
        return config
    except OmegaConfBaseException as error:
        raise preflight.explain(error, overrides, CONFIG_DIR) from error


def compose_unresolved(overrides: Sequence[str]) -> DictConfig:
    """The same, not resolved: options that follow others still do.

    Raises:
        UserError: they can't be composed.
    """
    register_verl_configs()
    try:
        with initialize_config_dir(str(CONFIG_DIR), version_base=None):
            config = compose("flowrl", overrides=list(overrides), return_hydra_config=True)
        HydraConfig.instance().set_config(config)  # names of runs refer to it
        with open_dict(config):
            del config["hydra"]
        return config
    except (HydraException, OmegaConfBaseException) as error:
        raise preflight.explain(error, overrides, CONFIG_DIR) from error
