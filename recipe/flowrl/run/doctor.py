"""Could a run work here?

A line for each thing that a run needs, and what to do about those that it hasn't got. Without an experiment: the
environment and the machine alone.
"""

import shutil
import sys
import tomllib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib import metadata, util
from pathlib import Path

from omegaconf import DictConfig

from recipe.flowrl.common.errors import UserError
from recipe.flowrl.common.project import PROJECT
from recipe.flowrl.preflight import made_by_run
from recipe.flowrl.preflight.accelerator import (
    OLDEST_DRIVER,
    check_driver,
    choose_attention,
    flash_attention_fault,
    import_fault,
)
from recipe.flowrl.preflight.batches import check_batches
from recipe.flowrl.preflight.data_files import check_data, not_looked_at, rows_by_source
from recipe.flowrl.preflight.machine import available_memory, check_machine
from recipe.flowrl.preflight.model_files import check_model
from recipe.flowrl.preflight.options import check_options
from recipe.flowrl.preflight.paths import choose_paths
from recipe.flowrl.preflight.registries import check_registered_names
from recipe.flowrl.preflight.reward import check_reward, check_reward_source
from recipe.flowrl.preflight.run_directory import check_directories, check_resume
from recipe.flowrl.sandbox import bubblewrap
from recipe.flowrl.tasks.rows import shown
from verl_ext.compat import UnsupportedVerlError, require_supported_verl

_COMPARED = ("torch", "vllm", "transformers")
"""What verl 0.9.1 asks for beside itself; the extra ``gpu`` pins it."""
FLASH_ATTN = "flash-attn"
"""An extra and its one package."""
INSTALL = "pip install -c requirements/gpu.lock -e .[gpu]"

PYTHONS = ((3, 11), (3, 12))
"""For which verl, vLLM and torch all have wheels of these versions."""

_IMPORTS = {name: f"import {name}" for name in ("torch", "transformers", "ray", "vllm", "verl", "mpmath")}
_GPU_IMPORTS = {
    "vLLM's kernels": "import torch, vllm._C_stable_libtorch",
    "NCCL": "import torch; assert torch.cuda.nccl.version() >= (2,)",
}
_CUPY = {"cupy's NCCL": "import cupy.cuda.nccl"}
"""What verl's NCCL checkpoint engine takes; no other does."""
_HOST_BYTES = 16e9
"""Main memory below which no GPU run starts."""
_BESIDES_BYTES = 16e9
"""Host memory for Ray, the workers and vLLM themselves. An assumption: on CPUs a rank and its server take 4 GB."""
_SHARED_BYTES = 2 * 2**30
"""Room in /dev/shm that the weight sync's bucket takes."""


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
    if sys.version_info[:2] not in PYTHONS:
        raise UserError(
            f"Python {sys.version.split()[0]} has no wheels of these versions: make the environment with 3.11 or 3.12 "
            "(uv python install 3.12)"
        )
    return f"verl {metadata.version('verl')}, Python {sys.version.split()[0]}"


def pinned(extra: str, names: Iterable[str]) -> dict[str, str]:
    """The versions of ``names`` that ``pip install -e .[extra]`` installs, from ``pyproject.toml``."""
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
    pins = (requirement.partition("==") for requirement in project["optional-dependencies"][extra])
    return {name: version for name, _, version in pins if name in names}


def _versions(config: DictConfig) -> str:
    pins, flash_pin = pinned("gpu", _COMPARED), pinned(FLASH_ATTN, [FLASH_ATTN])[FLASH_ATTN]
    found = {name: _version(name) for name in (*pins, FLASH_ATTN)}
    if config.trainer.device == "cuda":
        installed = {name: (found[name] or "missing").partition("+")[0] for name in found}
        wrong = [name for name in pins if installed[name] != pins[name]]
        if wrong:
            said = ", ".join(f"{name} {found[name] or 'missing'}" for name in wrong)
            wanted = ", ".join(f"{name} {pins[name]}" for name in wrong)
            raise UserError(f"{said}; verl 0.9.1 asks for {wanted}: {INSTALL}")
        if found[FLASH_ATTN] and installed[FLASH_ATTN] != flash_pin:
            raise UserError(
                f"flash-attn {found[FLASH_ATTN]}; verl 0.9.1 asks for {flash_pin}: install that (docs/gpus.md), or "
                "none: pip uninstall -y flash-attn"
            )
    return ", ".join(f"{name} {version}" for name, version in found.items() if version)


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _imports(config: DictConfig) -> str:
    wanted = dict(_IMPORTS)
    if config.trainer.device == "cuda":
        wanted |= _GPU_IMPORTS
        if config.actor_rollout_ref.rollout.checkpoint_engine.backend == "nccl":
            wanted |= _CUPY
    for name, code in wanted.items():
        if fault := import_fault(code):
            advice = f": {INSTALL}" if config.trainer.device == "cuda" else ""
            if "libcuda.so" in fault:
                advice = ": it comes with the NVIDIA driver; run this on a GPU node, in a container with GPUs"
            raise UserError(f"{name} can't be imported ({fault}){advice}")
    return ", ".join(wanted)


def _attention(config: DictConfig) -> str:
    """A flash-attn that is there and doesn't work is a failure, although a run takes sdpa instead."""
    if config.trainer.device != "cuda":
        return "sdpa"
    fault = flash_attention_fault()
    if fault and util.find_spec("flash_attn") is not None:
        raise UserError(
            f"{fault}: it was built for another torch or Python. Without it (pip uninstall -y flash-attn) runs take "
            "sdpa, at a cost; docs/gpus.md has the ways to one that fits"
        )
    return "; ".join(choose_attention(config)[1]) or "flash attention 2"


def _driver(config: DictConfig) -> str:
    if config.trainer.device != "cuda":
        return f"none needed (trainer.device={config.trainer.device})"
    version = check_driver()
    if version is None:
        raise Skipped("nvidia-smi isn't here")
    return f"{version}, CUDA 13.0 needs {OLDEST_DRIVER} or later"


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


def _sandbox(config: DictConfig) -> str:
    reason = bubblewrap.problem()
    rewards = config.reward.custom_reward_function
    needed = "tasks.code" in str(rewards.path) and not config.reward.sandbox_fusion.url
    if reason is None:
        return "; ".join(["bubblewrap", *bubblewrap.gaps()])
    if needed:
        raise UserError(f"{reason}. Programs are not run without one: docs/rewards.md")
    raise Skipped(f"only reward=code needs one ({reason})")


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


def _paths(config: DictConfig) -> str:
    choices, said = choose_paths(config)
    return "; ".join([*map(str, choices), *said]) or "as configured"


def _reward(config: DictConfig) -> str:
    check_reward_source(config)
    try:
        check_data(config)
    except UserError as error:
        raise Skipped("needs the data") from error
    rows = rows_by_source(config)
    check_reward(config, rows, not_looked_at(config))
    return f"graded an answer to a row of {', '.join(map(shown, rows)) or 'no source'}"


def _host_memory(config: DictConfig) -> str:
    if config.trainer.device != "cuda":
        raise Skipped("it is about GPUs")
    from recipe.flowrl.common.gpus import GPUS
    from recipe.flowrl.plan.text import planned

    # What a node's host holds doesn't depend on its GPUs' size.
    needed = planned(config, GPUS["h100_80gb"])[1].host_peak + _BESIDES_BYTES
    available = available_memory()
    if available < needed:
        raise UserError(
            f"{available / 1e9:.0f} GB available, {needed / 1e9:.0f} needed on this node (the whole state dict while "
            f"loading, the reference, what is offloaded, and {_BESIDES_BYTES / 1e9:.0f} GB for the processes "
            "themselves): use nodes with more, or more of them, and "
            "actor_rollout_ref.ref.fsdp_config.model_dtype=bf16"
        )
    return f"{available / 1e9:.0f} GB available, {needed / 1e9:.0f} needed on this node"


def _plan(config: DictConfig) -> str:
    if config.trainer.device != "cuda":
        raise Skipped("it is about GPUs")
    import torch

    from recipe.flowrl.common.gpus import GPUS, named
    from recipe.flowrl.plan.text import report

    name = named(torch.cuda.get_device_name()) if torch.cuda.is_available() else None
    if name is None:
        raise Skipped(f"no known GPU here: python -m recipe.flowrl plan ... gpu={' | '.join(GPUS)}")
    lines, wrong = report(config, name)
    if wrong:
        raise UserError("; ".join(wrong))
    return f"fits on {name}: {'; '.join(line for line in lines if 'on each GPU' in line)}"


ENVIRONMENT = (
    Check("verl", _verl),
    Check("versions", _versions),
    Check("imports", _imports),
    Check("attention", _attention),
    Check("driver", _driver),
    Check("GPUs", _gpus),
    Check("memory", _memory),
    Check("/dev/shm", _shared_memory),
    Check("disk", _disk),
    Check("Ray", _machine),
    Check("sandbox", _sandbox),
)
RUN = (
    Check("configuration", _configuration),
    Check("model", _model),
    Check("paths", _paths),
    Check("data", _data),
    Check("reward", _reward),
    Check("host memory", _host_memory),
    Check("plan", _plan),
)
