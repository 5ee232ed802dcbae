"""Train: ``python -m recipe.flowrl.main_flowrl experiment=countdown_cpu [any Hydra override]``."""

import os
import sys

import hydra
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from recipe.flowrl import preflight
from recipe.flowrl.common.errors import UserError, exit_status_of
from recipe.flowrl.common.project import CONFIG_DIR, in_utf8
from verl_ext.compat import UnsupportedVerlError, require_supported_verl
from verl_ext.source import register_verl_configs


@hydra.main(config_path=str(CONFIG_DIR), config_name="flowrl", version_base=None)
def run(config: DictConfig) -> None:
    """Check the configuration, make what it asks for, train, and write the report."""
    try:
        if config.dryrun:
            from recipe.flowrl.rehearsal import rehearse

            rehearse(config)
            return
        warnings = preflight.check(config)
        for warning in warnings:
            print(f"warning: {warning}", file=sys.stderr)
        for note in preflight.saturated_target(config):
            print(f"note: {note}", file=sys.stderr)
        from recipe.flowrl.run.launch import launch  # after the checks: it imports more than they need

        launch(config, warnings)
    except BaseException as error:
        # Hydra would give its own account of an exception; it lets an exit pass.
        sys.exit(exit_status_of(error))


def main() -> int:
    """Returns the exit status: 0, 1 after a failure, 2 for bad input, 130 or 143 when stopped by a signal."""
    in_utf8()
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
