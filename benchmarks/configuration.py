"""The recipe's configuration, composed as its entry point does it. Imports neither verl nor Ray."""

from omegaconf import DictConfig

from recipe.flowrl.preflight.compose import compose_run


def compose(*overrides: str) -> DictConfig:
    """The resolved configuration of ``main_flowrl`` with these overrides."""
    return compose_run(overrides)
