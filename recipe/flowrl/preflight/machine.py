"""The machine: memory, /dev/shm, ports, Ray's address, CPUs that Ray may count."""

import os
import shutil
import socket
import tempfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil
from omegaconf import DictConfig, OmegaConf

from recipe.flowrl.common.control_groups import own_groups
from recipe.flowrl.common.errors import UserError
from recipe.flowrl.preflight.accelerator import check_driver
from recipe.flowrl.preflight.separate import servers_ranks

# Measured on 2 cores with models of a few million parameters: 5.5 GB for one rank and its rollout server, 9.4 GB for
# two ranks and two servers.
_FIRST_RANK_BYTES = 5.5e9
_RANK_BYTES = 1.6e9
_SERVER_BYTES = 2.3e9
# In float32: weights, gradients, Adam's two moments and the reference, sharded over the ranks; each server has a copy.
_TRAINED_BYTES = 20
_SERVED_BYTES = 4
_CLEARLY_TOO_LITTLE = 0.7

_CPUS_PER_RANK = 3  # verl's bundle for a rank
_CPUS_PER_SERVER_RANK = 2  # and that for one of the rollout's own
_CPUS_BESIDES = 2  # TransferQueue's controller and storage unit
_CONNECT_TIMEOUT_S = 2.0

_LONGEST_TMPDIR = 107 - len("/verl-12345678/ray/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store")
"""Bytes that Linux leaves of a socket's path (sun_path) to the directory of the run's own Ray."""


def check_machine(config: DictConfig) -> None:
    """Check what the run needs of the machine, except for what depends on the model.

    Raises:
        UserError: something is missing, or in use.
    """
    _check_ray_address(config)
    _check_temporary_directory()
    check_ray_slots(config)
    _check_dashboard_port(config)
    if config.trainer.device == "cpu":
        _check_vllm_of_the_cpu()
        check_memory(config)
        _check_shared_memory(config)
    elif config.trainer.device == "cuda":
        _check_gpu(config)


def _check_temporary_directory() -> None:
    """Python would take another directory without a word; Ray ends in a traceback where its path is too long."""
    given = os.environ.get("TMPDIR")
    try:
        directory = tempfile.gettempdir()
    except FileNotFoundError:
        raise UserError(f"no directory for temporary files can be written ({given or '/tmp'}): set TMPDIR") from None
    if given and os.path.abspath(given) != os.path.abspath(directory):
        raise UserError(f"TMPDIR={given} isn't a directory that can be written: make it, or unset TMPDIR")
    if (length := len(os.fsencode(directory))) > _LONGEST_TMPDIR:
        raise UserError(
            f"TMPDIR={directory} has {length} bytes; the paths of sockets below it are bounded, so that it may have "
            f"{_LONGEST_TMPDIR}: TMPDIR=/tmp, or a shorter link to it"
        )


def check_memory(config: DictConfig, parameters: int = 0) -> None:
    """Check that a CPU run on a model of ``parameters`` parameters has the memory it needs.

    Raises:
        UserError: less than 0.7 times the estimated need is available.
    """
    ranks = config.trainer.n_gpus_per_node
    rollout = config.actor_rollout_ref.rollout
    serving = servers_ranks(config) or ranks
    servers = max(1, serving // (rollout.tensor_model_parallel_size * rollout.data_parallel_size))
    need = _FIRST_RANK_BYTES + (ranks - 1) * _RANK_BYTES + (servers - 1) * _SERVER_BYTES
    need += parameters * (_TRAINED_BYTES + _SERVED_BYTES * servers)
    available = available_memory()
    if available < _CLEARLY_TOO_LITTLE * need:
        size = f" for {parameters / 1e6:.0f}M parameters" if parameters else ""
        advice = "use fewer ranks (trainer.n_gpus_per_node=1), or free memory" if ranks > 1 else "free memory"
        raise UserError(
            f"{available / 1e9:.1f} GB of memory are available, about {need / 1e9:.1f} GB needed for {ranks} rank(s) "
            f"and {servers} rollout server(s){size}: {advice}"
        )


def available_memory() -> int:
    """Bytes that this process and its children can still use: the machine's, or less in a container with a limit."""
    available = psutil.virtual_memory().available
    for group in own_groups():
        try:
            limit = (group / "memory.max").read_text().strip()
            used = int((group / "memory.current").read_text())
            statistics = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        except OSError:
            continue
        if limit != "max":
            # The page cache counts as used, but is given up when needed.
            available = min(available, int(limit) - used + int(statistics["inactive_file"]))
    return max(available, 0)


def _check_shared_memory(config: DictConfig) -> None:
    objects = OmegaConf.select(config, "ray_kwargs.ray_init.object_store_memory") or 0
    bucket = config.actor_rollout_ref.rollout.checkpoint_engine.update_weights_bucket_megabytes * 2**20
    need = objects + bucket * (servers_ranks(config) or config.trainer.n_gpus_per_node)
    free = shutil.disk_usage("/dev/shm").free
    if free < need:
        raise UserError(
            f"/dev/shm has {free / 2**20:.0f} MiB free, {need / 2**20:.0f} MiB needed (ray_kwargs.ray_init."
            f"object_store_memory={objects} and the weight sync): enlarge it (docker run --shm-size=1g) or empty it"
        )


def check_ray_slots(config: DictConfig) -> None:
    """Check that Ray counts as many CPUs on each node as verl asks for: it would wait for ever.

    Raises:
        UserError: it counts fewer.
    """
    given = OmegaConf.select(config, "ray_kwargs.ray_init.num_cpus")
    ranks = config.trainer.n_gpus_per_node
    servers = servers_ranks(config)
    need = _CPUS_PER_RANK * ranks + _CPUS_PER_SERVER_RANK * servers + _CPUS_BESIDES
    if given is not None and given < need:
        own = f", {_CPUS_PER_SERVER_RANK} a rank of the rollout's own" if servers else ""
        raise UserError(
            f"ray_kwargs.ray_init.num_cpus={given}: {ranks + servers} rank(s) wait for ever for fewer than {need} "
            f"slots ({_CPUS_PER_RANK} a rank{own} and {_CPUS_BESIDES} besides): set it to {need} or more"
        )


def _check_ray_address(config: DictConfig) -> None:
    ray_init = config.ray_kwargs.ray_init
    given = ray_init.get("address")
    where, address = ("ray_kwargs.ray_init.address", given) if given else ("RAY_ADDRESS", os.environ.get("RAY_ADDRESS"))
    if not address or address in ("local", "auto"):
        return
    if ray_init.get("num_cpus") is not None or ray_init.get("num_gpus") is not None:
        raise UserError(
            f"{where}={address} names a running Ray cluster, but ray_kwargs.ray_init.num_cpus is for one of the run's "
            f"own: {'set it to local' if given else 'unset RAY_ADDRESS'}, or set num_cpus and num_gpus to null"
        )
    host, _, port = address.removeprefix("ray://").rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=_CONNECT_TIMEOUT_S).close()
    except (OSError, ValueError) as error:
        raise UserError(
            f"{where}={address}: no Ray cluster answers there ({error}): start it, or unset the address"
        ) from error


def _check_dashboard_port(config: DictConfig) -> None:
    ray_init = config.ray_kwargs.ray_init
    port = ray_init.get("dashboard_port")
    if port is None or ray_init.get("include_dashboard") is False:
        return
    host = ray_init.get("dashboard_host") or "127.0.0.1"
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except (OSError, OverflowError, TypeError) as error:
            raise UserError(
                f"ray_kwargs.ray_init.dashboard_port={port} can't be used ({error}): choose another port, or set "
                "ray_kwargs.ray_init.include_dashboard=false"
            ) from error


def _check_vllm_of_the_cpu() -> None:
    try:
        found = version("vllm")
    except PackageNotFoundError:
        return  # other checks say so
    if "cpu" not in found:
        raise UserError(
            f"trainer.device=cpu, which dryrun=true sets too, needs vLLM's CPU build, and vllm {found} is for GPUs: "
            "use the CPU environment (make venv), beside the one for GPUs"
        )


def _check_gpu(config: DictConfig) -> None:
    elsewhere = config.trainer.nnodes > 1 or os.environ.get("RAY_ADDRESS") or config.ray_kwargs.ray_init.get("address")
    devices = ("nvidia0", "nvidiactl", "dxg", "kfd")  # NVIDIA, NVIDIA in containers, in WSL, and AMD
    if not elsewhere and not any(Path("/dev", name).exists() for name in devices):
        raise UserError(
            "trainer.device=cuda, but this machine has no GPU: rehearse the run with dryrun=true, or choose cluster=cpu"
        )
    check_driver()
