"""Submits a run to SLURM.

Renders ``slurm/train.sbatch`` with nodes, GPUs and time taken from the configuration and with the settings of
``slurm/site.env``, and hands it to ``sbatch``. What the run would refuse is refused here, and what won't fit on the
nodes' GPUs (``slurm.gpu``).
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig

from recipe.flowrl import preflight
from recipe.flowrl.common.errors import UserError
from recipe.flowrl.common.files import write_text
from recipe.flowrl.common.gpus import GPUS
from recipe.flowrl.common.project import PROJECT
from recipe.flowrl.preflight.compose import compose_run
from recipe.flowrl.preflight.separate import refuse_separate

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
    head = "".join([*lines[:first], *(f"{_DIRECTIVE}{_quoted(option)}\n" for option in directives(config, site))])
    return head + kept.replace(_SETTINGS, f"{_settings(config)}set -- {shlex.join(overrides)}\n")


def directives(config: DictConfig, site: dict[str, str]) -> list[str]:
    """The options of ``sbatch``. Raises UserError where those of the site can't be told apart."""
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
        f"--output={str(PROJECT / config.run_dir).replace('%', '%%')}/slurm-%j.out",
    ]
    if trainer.device != "cpu":  # there, Ray's GPUs only count the ranks
        options.append(f"--gpus-per-node={trainer.n_gpus_per_node}")
    options += [f"--{name}={site[key]}" for name, key in _NAMED.items() if site[key]]
    try:
        return options + shlex.split(site["SITE_SBATCH"])
    except ValueError as error:
        raise UserError(f"SITE_SBATCH={site['SITE_SBATCH']!r}: {error}; quote it as for a shell") from error


def _quoted(option: str) -> str:
    """An option as ``sbatch`` reads it from a line of a script: with double quotes and backslashes, as a shell does.

    Raises:
        UserError: no line can hold it.
    """
    if not option.isprintable():
        raise UserError(f"sbatch option {option!r}: a line of a job script can't hold a line end or control character")
    if re.fullmatch(r"[\w@%+=:,./-]+", option):
        return option
    name, equals, value = option.partition("=")
    value = re.sub(r'(["\\])', r"\\\1", value if equals else name)
    return f'{name}="{value}"' if equals else f'"{value}"'


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
    refuse_separate(config, "submit")
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
    from recipe.flowrl.plan.architecture import load_architecture
    from recipe.flowrl.plan.text import report

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
        raise UserError("sbatch not found: submit from a login node of the cluster; show=true shows the script")
    path = run_dir / "slurm.sbatch"
    run_dir.mkdir(parents=True, exist_ok=True)
    write_text(path, script)
    finished = subprocess.run(["sbatch", "--parsable", str(path)], cwd=PROJECT, capture_output=True, text=True)
    if finished.returncode:
        raise UserError(f"sbatch refused {path}: {' '.join(finished.stderr.split())}")
    return finished.stdout.strip()
