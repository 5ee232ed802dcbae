"""verl's files, found without importing verl: that takes seconds, and has to wait until ``VERL_PLATFORM`` is set."""

import importlib.util
from pathlib import Path

from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.plugins import Plugins
from hydra.plugins.search_path_plugin import SearchPathPlugin


def verl_directory() -> Path:
    """Where the package ``verl`` is installed.

    Raises:
        ModuleNotFoundError: it isn't.
    """
    spec = importlib.util.find_spec("verl")
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError("verl isn't installed in this environment: make venv", name="verl")
    return Path(spec.submodule_search_locations[0])


class VerlConfigs(SearchPathPlugin):
    """Puts verl's trainer configurations on Hydra's search path.

    As ``hydra.searchpath: [pkg://verl.trainer.config]`` would, but Hydra imports a ``pkg://`` package to list it: that
    costs the seconds of importing torch, Ray and verl before the first override is looked at, and imports verl before
    the configuration can say on which platform.
    """

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        search_path.append(provider="verl", path=f"file://{verl_directory() / 'trainer' / 'config'}")


def register_verl_configs() -> None:
    """Make verl's configurations known to every composition in this process."""
    Plugins.instance().register(VerlConfigs)
