"""The recipe's configuration, composed as its entry point does it. Imports neither verl nor Ray."""

from omegaconf import DictConfig, OmegaConf, open_dict

from recipe.flowrl.main_flowrl import CONFIG_DIR
from verl_ext.source import register_verl_configs


def compose(*overrides: str) -> DictConfig:
    """The resolved configuration of ``main_flowrl`` with these overrides."""
    from hydra import compose, initialize_config_dir
    from hydra.core.hydra_config import HydraConfig

    register_verl_configs()
    with initialize_config_dir(str(CONFIG_DIR), version_base=None):
        config = compose("flowrl", overrides=list(overrides), return_hydra_config=True)
    HydraConfig.instance().set_config(config)  # for ${hydra:runtime.choices.algo}
    with open_dict(config):
        del config["hydra"]
    OmegaConf.resolve(config)
    return config


def environment(config: DictConfig) -> dict[str, str]:
    """Environment variables that the run's processes get from Ray; to be set before verl is imported."""
    return {name: str(value) for name, value in config.ray_kwargs.ray_init.runtime_env.env_vars.items()}
