"""Train: ``python -m recipe.flowrl.main_flowrl experiment=countdown_cpu [any Hydra override]``."""

import os
import sys
from pathlib import Path

import hydra
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from recipe.flowrl import preflight
from recipe.flowrl.errors import UserError, exit_status_of
from verl_ext.compat import UnsupportedVerlError, require_supported_verl
from verl_ext.source import register_verl_configs

CONFIG_DIR = Path(__file__).resolve().parents[2] / "configs"


@hydra.main(config_path=str(CONFIG_DIR), config_name="flowrl", version_base=None)
def run(config: DictConfig) -> None:
    """Check the configuration, make what it asks for, train, and write the report."""
    try:
        if config.dryrun:
            from recipe.flowrl.rehearsal import rehearse

            rehearse(config)
            return
        for warning in preflight.check(config):
            print(f"warning: {warning}", file=sys.stderr)
        from recipe.flowrl.launch import launch  # after the checks: it imports more than they need

        launch(config)
    except BaseException as error:
        # Hydra would give its own account of an exception; it lets an exit pass.
        sys.exit(exit_status_of(error))


def main() -> int:
    """Returns the exit status: 0, 1 after a failure, 2 for bad input, 130 or 143 when stopped by a signal."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra hands on what it can't compose, instead of printing it
    try:
        require_supported_verl()
        preflight.check_arguments(sys.argv[1:])
        register_verl_configs()
        run()
    except UnsupportedVerlError as error:
        return exit_status_of(UserError(str(error)))
    except (HydraException, OmegaConfBaseException) as error:
        return exit_status_of(preflight.explain(error, sys.argv[1:], CONFIG_DIR))
    except BaseException as error:
        return exit_status_of(error)
    return 0


if __name__ == "__main__":
    sys.exit(main())
