"""Submit a run to SLURM: ``python -m recipe.flowrl.submit [--dry-run] experiment=... [any Hydra override]``.

Renders ``slurm/train.sbatch`` with nodes, GPUs and time taken from the configuration and with the settings of
``slurm/site.env``; shows it (``--dry-run``) or hands it to ``sbatch``. What the run would refuse is refused here, and
what won't fit on the nodes' GPUs (``slurm.gpu``).
"""

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig

from recipe.flowrl import preflight
from recipe.flowrl.compose import compose_run
from recipe.flowrl.errors import UserError, exit_status_of
from recipe.flowrl.plan.gpus import GPUS

PROJECT = Path(__file__).resolve().parents[2]
SITE = Path(os.environ.get("FLOWRL_SITE", PROJECT / "slurm" / "site.env"))
_DIRECTIVE, _SETTINGS = "#SBATCH ", "# submit: settings\n"
_NAMED = {"account": "SITE_ACCOUNT", "partition": "SITE_PARTITION"}
_SITE_NAMES = (*_NAMED.values(), "SITE_SBATCH")


def render(config: DictConfig, overrides: Sequence[str], site: dict[str, str]) -> str:
    """The script: ``slurm/train.sbatch`` with other directives, its settings, and the overrides as its arguments.

    Args:
        config: of the run, checked.
        overrides: what it was composed from.
        site: the site's settings by name, as :func:`read_site` returns them.
    """
    script = (PROJECT / "slurm" / "train.sbatch").read_text()
    lines = script.splitlines(keepends=True)
    first = next(index for index, line in enumerate(lines) if line.startswith(_DIRECTIVE))
    kept = "".join(line for line in lines[first:] if not line.startswith(_DIRECTIVE))
    head = "".join([*lines[:first], *(f"{_DIRECTIVE}{option}\n" for option in directives(config, site))])
    return head + kept.replace(_SETTINGS, f"{_settings(config)}set -- {shlex.join(overrides)}\n")


def directives(config: DictConfig, site: dict[str, str]) -> list[str]:
    """The options of ``sbatch``."""
    trainer = config.trainer
    options = [
        f"--job-name={trainer.project_name}-{trainer.experiment_name}",
        f"--nodes={trainer.nnodes}",
        "--ntasks-per-node=1",
        "--exclusive",
        f"--time={config.slurm.time}",
        f"--signal=B:USR1@{config.slurm.notice_s}",
        "--requeue",
        "--open-mode=append",
        f"--output={PROJECT / config.run_dir}/slurm-%j.out",
    ]
    if trainer.device != "cpu":  # there, Ray's GPUs only count the ranks
        options.append(f"--gpus-per-node={trainer.n_gpus_per_node}")
    options += [f"--{name}={site[key]}" for name, key in _NAMED.items() if site[key]]
    return options + shlex.split(site["SITE_SBATCH"])


def read_site(path: Path) -> dict[str, str]:
    """The settings in ``path`` that concern ``sbatch``, empty where it is silent or absent.

    Raises:
        UserError: the shell can't read it.
    """
    if not path.is_file():
        return dict.fromkeys(_SITE_NAMES, "")
    shown = "; ".join(f'printf "%s\\0" "${{{name}:-}}"' for name in _SITE_NAMES)
    finished = subprocess.run(
        ["bash", "-uc", f'. "$1" >&2 && {{ {shown}; }}', "site", str(path)],
        env=os.environ | {"FLOWRL_ROOT": str(PROJECT)},
        capture_output=True,
        text=True,
    )
    if finished.returncode:
        raise UserError(f"{path}: bash can't read it ({' '.join(finished.stderr.split())}): compare site.env.example")
    return dict(zip(_SITE_NAMES, finished.stdout.split("\0"), strict=False))


def _settings(config: DictConfig) -> str:
    settings = {"FLOWRL_ROOT": PROJECT, "FLOWRL_SITE": SITE.absolute()}
    if (cpus := config.ray_kwargs.ray_init.get("num_cpus")) is not None:
        settings["RAY_CPUS_PER_NODE"] = cpus
    if (size := config.ray_kwargs.ray_init.get("object_store_memory")) is not None:
        settings["RAY_OBJECT_STORE_BYTES"] = size
    settings["RAY_GPUS_PER_NODE"] = config.trainer.n_gpus_per_node
    return "".join(f"export {name}={shlex.quote(str(value))}\n" for name, value in settings.items())


def composed(overrides: Sequence[str]) -> DictConfig:
    """The configuration of a run with these overrides, resolved, as on the cluster it will run on.

    Raises:
        UserError: an override is wrong, or the run can't work.
    """
    config = compose_run(overrides)
    for warning in [*preflight.check(config, here=False), *check_fit(config)]:
        print(f"warning: {warning}", file=sys.stderr)
    return config


def check_fit(config: DictConfig) -> list[str]:
    """Check that the run fits on ``slurm.gpu``, as :mod:`recipe.flowrl.plan` reckons.

    Returns:
        Warnings: that it couldn't be reckoned, and why.

    Raises:
        UserError: it doesn't fit; says what to change.
    """
    name = config.slurm.gpu
    if config.trainer.device != "cuda" or name is None:
        return []
    from recipe.flowrl.plan.model import load_architecture
    from recipe.flowrl.plan.report import report

    try:
        load_architecture(config.actor_rollout_ref.model.path)
    except UserError as error:
        return [f"not checked whether the run fits on its GPUs: {error}"]
    if wrong := report(config, name)[1]:
        nodes, gpus = config.trainer.nnodes, config.trainer.n_gpus_per_node
        raise UserError(
            f"plan says that the run doesn't fit on {nodes} x {gpus} {name}: {'; '.join(wrong)}\n"
            f"slurm.gpu=NAME if the nodes have others ({', '.join(GPUS)}); slurm.gpu=null submits anyway"
        )
    return []


def submit(script: str, run_dir: Path) -> str:
    """Hand the script to ``sbatch``, from ``run_dir``'s file ``slurm.sbatch``; returns what it says, the job's id.

    Raises:
        UserError: there is no ``sbatch``, or it refuses.
    """
    if shutil.which("sbatch") is None:
        raise UserError("sbatch not found: submit from a login node of the cluster; --dry-run shows the script")
    path = run_dir / "slurm.sbatch"
    run_dir.mkdir(parents=True, exist_ok=True)
    path.write_text(script)
    finished = subprocess.run(["sbatch", "--parsable", str(path)], cwd=PROJECT, capture_output=True, text=True)
    if finished.returncode:
        raise UserError(f"sbatch refused {path}: {' '.join(finished.stderr.split())}")
    return finished.stdout.strip()


def main(arguments: list[str]) -> int:
    """Returns the exit status."""
    try:
        if not arguments or {"-h", "--help"} & set(arguments):
            print(__doc__.strip())
            return 0
        overrides = [argument for argument in arguments if argument != "--dry-run"]
        if flags := [argument for argument in overrides if argument.startswith("-")]:
            raise UserError(f"{flags[0]}: unknown; --dry-run is the only option, the others are Hydra overrides")
        config = composed(overrides)
        script = render(config, overrides, read_site(SITE))
        if len(overrides) < len(arguments):
            print(script, end="")
        else:
            job = submit(script, PROJECT / config.run_dir)
            print(f"job {job}; python -m recipe.flowrl.status {config.run_dir}")
    except BaseException as error:
        return exit_status_of(error)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
