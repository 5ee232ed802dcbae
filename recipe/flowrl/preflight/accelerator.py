"""What a GPU run finds installed: flash attention, or what it takes instead; the driver."""

import functools
import shutil
import subprocess
import sys
from importlib import metadata, util

from omegaconf import DictConfig, OmegaConf, open_dict

from recipe.flowrl.common.errors import UserError

FLASH, SDPA = "flash_attention_2", "sdpa"
IMPORT_LIMIT_S = 300
OLDEST_DRIVER = 580
"""Major version of the NVIDIA driver that came with CUDA 13.0, which the pinned torch and vLLM are built for; CUDA's
release notes, table "minimum required driver version"."""

_USED = ("flash_attn.flash_attn_interface", "flash_attn.bert_padding", "flash_attn.ops.triton.cross_entropy")
"""Of flash-attn: the kernels, by transformers; the rest by verl."""
_DRIVER_LIMIT_S = 60
_MODELS = ("actor_rollout_ref.model", "critic.model")
_LONGEST_REASON = 200


def import_fault(code: str, limit_s: float = IMPORT_LIMIT_S) -> str | None:
    """Run ``code``, an import, in a process of its own: a library of the wrong ABI may end it.

    Returns:
        Why it failed, in one line; None if it didn't.
    """
    try:
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=limit_s)
    except subprocess.TimeoutExpired:
        return f"takes more than {limit_s:g} s"
    if done.returncode == 0:
        return None
    ended = f"ended by signal {-done.returncode}" if done.returncode < 0 else f"exit status {done.returncode}"
    # A traceback's last line is the error; what a library that aborts says last comes before it.
    said = next((line.strip() for line in reversed(done.stderr.splitlines()) if line.strip()), None)
    return ended if said is None else said[:_LONGEST_REASON] if done.returncode > 0 else f"{ended}: {said}"


@functools.cache
def flash_attention_fault() -> str | None:
    """Why flash attention can't be used in this environment, None if it can."""
    if util.find_spec("flash_attn") is None:
        return "flash-attn isn't installed"
    fault = import_fault(f"import {', '.join(_USED)}")
    if fault is None:
        return None
    try:
        version = f" {metadata.version('flash-attn')}"
    except metadata.PackageNotFoundError:
        version = ""
    return f"flash-attn{version} is installed but can't be imported ({fault})"


def choose_attention(config: DictConfig) -> tuple[dict[str, str], list[str]]:
    """The attention of a GPU run's models: what is configured, else flash attention where it can be used, else sdpa.

    Args:
        config: of the run, resolved.

    Returns:
        Options to set, with their values, and what to tell the user, none if it is flash attention everywhere.

    Raises:
        UserError: the configuration asks for flash attention, which can't be used here; or for sequence parallelism
            without it.
    """
    if config.trainer.device != "cuda":
        return {}, []
    options = [f"{model}.override_config.attn_implementation" for model in _MODELS]
    given = {option: OmegaConf.select(config, option) for option in options}
    fault = flash_attention_fault() if any(value in (None, FLASH) for value in given.values()) else None
    for option, value in given.items():
        if value == FLASH and fault:
            raise UserError(f"{option}={FLASH}: {fault}; leave it out to take sdpa, or see docs/gpus.md")
    chosen = {option: SDPA if fault else FLASH for option, value in given.items() if value is None}
    _check_sequence_parallelism(config, given | chosen, fault)
    if not fault or options[0] not in chosen:
        return chosen, []
    return chosen, [
        f"attention: sdpa, since {fault}; it works on all tokens of a packed micro-batch with one another instead of "
        "each sequence's own, which costs time, the more the longer micro-batches are (docs/gpus.md)"
    ]


def settle_attention(config: DictConfig) -> None:
    """Set the attention of :func:`choose_attention` in the run's configuration."""
    with open_dict(config):
        for option, value in choose_attention(config)[0].items():
            OmegaConf.update(config, option, value, force_add=True)


def _check_sequence_parallelism(config: DictConfig, attention: dict[str, str], fault: str | None) -> None:
    sizes = {
        "actor_rollout_ref.actor.ulysses_sequence_parallel_size": "actor_rollout_ref.model",
        "critic.ulysses_sequence_parallel_size": "critic.model",
    }
    for option, model in sizes.items():
        used = attention[f"{model}.override_config.attn_implementation"]
        size = OmegaConf.select(config, option) or 1
        if size > 1 and not used.startswith("flash_attention"):
            why = fault or f"{model}.override_config.attn_implementation={used}"
            raise UserError(f"{option}={size}: sequence parallelism needs flash attention, and {why}: set it to 1")


def check_driver() -> str | None:
    """Check that the NVIDIA driver of this machine, if it has one, runs what is built for CUDA 13.0.

    Returns:
        Its version, None if ``nvidia-smi`` isn't there.

    Raises:
        UserError: it is too old, and there is no compatibility package that makes up for it; or it doesn't answer.
    """
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    query = [program, "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=_DRIVER_LIMIT_S)
    except subprocess.TimeoutExpired as error:
        raise UserError(f"nvidia-smi doesn't answer within {_DRIVER_LIMIT_S} s: look at the driver (dmesg)") from error
    version = done.stdout.strip().splitlines()[0] if done.stdout.strip() else ""
    major = version.partition(".")[0]
    if done.returncode or not major.isdigit():
        said = " ".join((done.stderr.strip() or done.stdout.strip() or f"exit status {done.returncode}").split())
        raise UserError(f"nvidia-smi: {said[:_LONGEST_REASON]}: the driver doesn't work here")
    if int(major) < OLDEST_DRIVER and import_fault("import torch; torch.cuda.init()"):
        raise UserError(
            f"driver {version} is too old for CUDA 13.0, which needs {OLDEST_DRIVER} or later: update it, or on a "
            "data-centre GPU use the Docker image, which brings CUDA's compatibility package (docs/gpus.md)"
        )
    return version
