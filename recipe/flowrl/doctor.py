"""Could a run work here? ``python -m recipe.flowrl.doctor [experiment=math_7b cluster=1x8 ... any Hydra override]``.

A line for each thing that a run needs, and what to do about those that it hasn't got. Without an experiment: the
environment and the machine alone. Exit status 0: all is well; 1: something isn't.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from recipe.flowrl.compose import compose_run
from recipe.flowrl.errors import FAILED, UserError, exit_status_of
from recipe.flowrl.preflight import made_by_run
from recipe.flowrl.preflight.batches import check_batches
from recipe.flowrl.preflight.checkpoint import check_directories, check_resume
from recipe.flowrl.preflight.data import check_data, first_rows
from recipe.flowrl.preflight.machine import available_memory, check_machine
from recipe.flowrl.preflight.model import check_model
from recipe.flowrl.preflight.options import check_options
from recipe.flowrl.preflight.registries import check_registered_names
from recipe.flowrl.preflight.reward import check_reward, check_reward_source
from verl_ext.compat import UnsupportedVerlError, require_supported_verl

GPU_PINS = {"torch": "2.11.0", "vllm": "0.24.0", "transformers": "5.9.0", "flash-attn": "2.8.3"}
"""What verl 0.9.1 asks for beside itself; installed by ``pip install -e .[gpu]``."""

_IMPORTS = ("torch", "transformers", "ray", "vllm", "verl", "math_verify")
_IMPORT_LIMIT_S = 300
_HOST_BYTES = 16e9
"""Of memory, below which no GPU run starts."""
_SHARED_BYTES = 2 * 2**30
"""Of /dev/shm: the weight sync's bucket."""


class Skipped(Exception):
    """A check that can't be made yet; the message says what it waits for."""


@dataclass(frozen=True)
class Check:
    """One line: ``run`` returns what was found, or raises :class:`UserError` or :class:`Skipped`."""

    name: str
    run: Callable[[DictConfig], str]


def examine(config: DictConfig, checks: Iterable[Check]) -> tuple[list[str], bool]:
    """Make all checks, also after one that failed; returns the lines, and whether all is well."""
    lines, well = [], True
    for check in checks:
        try:
            lines.append(f"ok       {check.name}: {check.run(config)}")
        except Skipped as reason:
            lines.append(f"skipped  {check.name}: {reason}")
        except UserError as problem:
            lines.append(f"FAILED   {check.name}: {' '.join(str(problem).split())}")
            well = False
    return lines, well


def _verl(config: DictConfig) -> str:
    try:
        require_supported_verl()
    except UnsupportedVerlError as error:
        raise UserError(str(error)) from error
    return f"verl {metadata.version('verl')}, Python {sys.version.split()[0]}"


def _versions(config: DictConfig) -> str:
    found = {name: _version(name) for name in GPU_PINS}
    if config.trainer.device == "cuda":
        wrong = {n: v for n, v in found.items() if v is None or v.partition("+")[0] != GPU_PINS[n]}
        if wrong:
            said = ", ".join(f"{name} {version or 'missing'}" for name, version in wrong.items())
            wanted = ", ".join(f"{name} {GPU_PINS[name]}" for name in wrong)
            raise UserError(f"{said}; verl 0.9.1 asks for {wanted}: pip install -e .[gpu]")
    return ", ".join(f"{name} {version}" for name, version in found.items() if version)


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _imports(config: DictConfig) -> str:
    for name in _IMPORTS:  # each by itself: a broken one may end the process
        try:
            done = subprocess.run(
                [sys.executable, "-c", f"import {name}"], capture_output=True, text=True, timeout=_IMPORT_LIMIT_S
            )
        except subprocess.TimeoutExpired as error:
            raise UserError(f"import {name} takes more than {_IMPORT_LIMIT_S} s") from error
        if done.returncode:
            last = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
            raise UserError(f"import {name}: {last}")
    return ", ".join(_IMPORTS)


def _gpus(config: DictConfig) -> str:
    if config.trainer.device != "cuda":
        return f"none needed (trainer.device={config.trainer.device})"
    import torch

    count, needed = torch.cuda.device_count(), config.trainer.n_gpus_per_node
    if count < needed:
        raise UserError(
            f"{count} here, trainer.n_gpus_per_node={needed}: set it to {count}"
            if count
            else f"none here, trainer.n_gpus_per_node={needed}: run this on a GPU node, rehearse the run here with "
            "dryrun=true, or choose cluster=cpu"
        )
    free, total = torch.cuda.mem_get_info()
    return f"{count} x {torch.cuda.get_device_name()}, {free / 1e9:.0f} of {total / 1e9:.0f} GB free on the first"


def _memory(config: DictConfig) -> str:
    available = available_memory()
    if config.trainer.device == "cuda" and available < _HOST_BYTES:
        raise UserError(f"{available / 1e9:.1f} GB available, at least {_HOST_BYTES / 1e9:.0f} needed: free some")
    return f"{available / 1e9:.1f} GB available"


def _shared_memory(config: DictConfig) -> str:
    free = shutil.disk_usage("/dev/shm").free
    if config.trainer.device == "cuda" and free < _SHARED_BYTES:
        raise UserError(f"{free / 1e9:.1f} GB free, {_SHARED_BYTES / 1e9:.1f} needed: docker run --shm-size=16g")
    return f"{free / 1e9:.1f} GB free"


def _disk(config: DictConfig) -> str:
    check_directories(config)
    existing = next(
        path for path in (Path(config.run_dir).absolute(), *Path(config.run_dir).absolute().parents) if path.exists()
    )
    return f"{shutil.disk_usage(existing).free / 1e9:.0f} GB free for run_dir={config.run_dir}"


def _machine(config: DictConfig) -> str:
    check_machine(config)
    return "Ray's address and ports, and what it may count"


def _configuration(config: DictConfig) -> str:
    warnings = [*check_options(config), *check_registered_names(config)]
    check_batches(config)
    check_resume(config)
    return "; ".join(["options, batches and checkpoint", *warnings])


def _data(config: DictConfig) -> str:
    check_data(config, yet_to_be_made=made_by_run(config, "data"))
    return str(config.data.train_files)


def _model(config: DictConfig) -> str:
    size, warnings = check_model(config, yet_to_be_made=made_by_run(config, "model"))
    said = f" ({size.parameters / 1e9:.2f} B parameters)" if size else ""
    return "; ".join([f"{config.actor_rollout_ref.model.path}{said}", *warnings])


def _reward(config: DictConfig) -> str:
    check_reward_source(config)
    try:
        check_data(config)
    except UserError as error:
        raise Skipped("needs the data") from error
    rows = first_rows(config)
    check_reward(config, rows)
    return f"graded an answer to a row of {', '.join(row['data_source'] for row in rows) or 'no source'}"


def _plan(config: DictConfig) -> str:
    if config.trainer.device != "cuda":
        raise Skipped("it is about GPUs")
    import torch

    from recipe.flowrl.plan.gpus import GPUS, named
    from recipe.flowrl.plan.report import report

    name = named(torch.cuda.get_device_name()) if torch.cuda.is_available() else None
    if name is None:
        raise Skipped(f"no known GPU here: python -m recipe.flowrl.plan ... gpu={' | '.join(GPUS)}")
    lines, wrong = report(config, name)
    if wrong:
        raise UserError("; ".join(wrong))
    return f"fits on {name}: {'; '.join(line for line in lines if 'on each GPU' in line)}"


ENVIRONMENT = (
    Check("verl", _verl),
    Check("versions", _versions),
    Check("imports", _imports),
    Check("GPUs", _gpus),
    Check("memory", _memory),
    Check("/dev/shm", _shared_memory),
    Check("disk", _disk),
    Check("Ray", _machine),
)
RUN = (
    Check("configuration", _configuration),
    Check("model", _model),
    Check("data", _data),
    Check("reward", _reward),
    Check("plan", _plan),
)


def main(arguments: list[str]) -> int:
    """Returns the exit status: 0 if all is well, 1 if not, 2 for overrides that can't be composed."""
    try:
        config = compose_run(arguments)
        environment = OmegaConf.select(config, "ray_kwargs.ray_init.runtime_env.env_vars") or {}
        os.environ.update({name: str(value) for name, value in environment.items()})
        has_run = any(argument.startswith("experiment=") for argument in arguments)
        lines, well = examine(config, (*ENVIRONMENT, *RUN) if has_run else ENVIRONMENT)
    except BaseException as error:
        return exit_status_of(error)
    print("\n".join(lines))
    return 0 if well else FAILED


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
