"""Train: ``python -m recipe.flowrl.main_flowrl experiment=countdown_cpu [any Hydra override]``."""

import sys
from pathlib import Path

import hydra
from omegaconf import DictConfig

from recipe.flowrl import preflight
from recipe.flowrl.errors import UserError, exit_status_of
from recipe.flowrl.launch import launch

CONFIG_DIR = Path(__file__).resolve().parents[2] / "configs"


@hydra.main(config_path=str(CONFIG_DIR), config_name="flowrl", version_base=None)
def run(config: DictConfig) -> None:
    """Check the configuration, make what it asks for, train, and write the report."""
    preflight.check(config)
    launch(config)


def main() -> int:
    """Returns the exit status: 0, 1 after a failure, 2 for bad input, 130 or 143 when stopped by a signal."""
    try:
        preflight.check_overrides(sys.argv[1:], CONFIG_DIR)
        run()
    except BaseException as error:
        return exit_status_of(error)
    return 0


if __name__ == "__main__":
    sys.exit(main())
