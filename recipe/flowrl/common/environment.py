"""The environment that a run's configuration asks for."""

import os

from omegaconf import DictConfig, OmegaConf

VARIABLES = "ray_kwargs.ray_init.runtime_env.env_vars"
"""The option that holds the variables of a run's processes."""


def environment_of(config: DictConfig) -> dict[str, str]:
    """The variables that Ray gives the run's processes: name -> value."""
    variables = OmegaConf.select(config, VARIABLES) or {}
    return {name: str(value) for name, value in variables.items()}


def export_environment(config: DictConfig) -> None:
    """Set them in this process, before it imports verl, which looks at them while it is imported."""
    os.environ.update(environment_of(config))
