"""Checkpoint to Hugging Face model directory.

verl's model merger does the work. The log-partition head isn't part of the policy, so it isn't exported.
"""

from __future__ import annotations

import json
import os
import pickle
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING

from recipe.flowrl.common.errors import UserError
from recipe.flowrl.common.foreign import read_text

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_MOST_RANKS = 100_000

DTYPES = ("float32", "bfloat16", "float16")


def export(checkpoint: Path, output: Path, dtype: str | None = None, trust: bool = False) -> None:
    """Write the policy of a checkpoint as a plain Hugging Face model directory with its tokenizer.

    A LoRA checkpoint becomes the base model with the adapter in ``lora_adapter/``, as verl's merger has it.

    Args:
        checkpoint: ``.../global_step_N`` or ``.../global_step_N/actor``, written by FSDP on any number of ranks.
        output: the directory to make. It appears only when it is complete.
        dtype: of the weights, one of ``DTYPES``; None keeps the checkpoint's.
        trust: the checkpoint may run code while it is read, as any pickle can.

    Raises:
        UserError: not a checkpoint or an incomplete one, ``output`` holds something already, or the checkpoint holds
            more than tensors and isn't trusted.
    """
    actor = _actor_directory(checkpoint)
    if output.is_file() or (output.is_dir() and any(output.iterdir())):
        raise UserError(f"{output} exists already: name a directory that doesn't, or an empty one")
    output = output.absolute()  # "." has no name
    partial = output.with_name(f".{output.name}.{secrets.token_hex(8)}.tmp")
    partial.mkdir(parents=True)
    try:
        with nullcontext() if trust else _tensors_only(actor):
            _merge(actor, partial, dtype)
        partial.replace(output)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _actor_directory(checkpoint: Path) -> Path:
    """The directory of verl's files in ``checkpoint``, which is complete.

    Raises:
        UserError: there is none, or a file is missing in it.
    """
    actor = next((path for path in (checkpoint, checkpoint / "actor") if (path / "fsdp_config.json").is_file()), None)
    if actor is None:
        raise UserError(
            f"{checkpoint} is not a checkpoint: neither it nor its actor/ holds fsdp_config.json; "
            "name a .../global_step_N"
        )
    try:
        ranks = int(json.loads(read_text(actor / "fsdp_config.json"))["world_size"])
        if not 0 < ranks <= _MOST_RANKS:
            raise ValueError
    except (OSError, ValueError, TypeError, LookupError, OverflowError, RecursionError):
        raise UserError(f"{actor / 'fsdp_config.json'} is damaged: it has no world_size that a run can have") from None
    shards = [f"model_world_size_{ranks}_rank_{rank}.pt" for rank in range(ranks)]
    missing = [name for name in [*shards, "huggingface/config.json"] if not (actor / name).is_file()]
    if missing:
        raise UserError(f"{actor} is incomplete: {', '.join(missing)} missing; export another checkpoint")
    return actor


@contextmanager
def _tensors_only(actor: Path) -> Iterator[None]:
    """Have ``torch.load`` read tensors and plain values alone, also where verl asks for more.

    Raises:
        UserError: there is more in ``actor``, or it is damaged.
    """
    name = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        yield
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{actor}: a file of weights holds more than tensors, or is damaged; reading it could run code: trust=true "
            "if you know who wrote it (FSDP1's shards need it)"
        ) from error
    except (EOFError, RuntimeError, LookupError, TypeError, ValueError, AttributeError, OSError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:300]
        raise UserError(f"{actor} can't be exported: {reason}: export another checkpoint") from error
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def _merge(actor: Path, output: Path, dtype: str | None) -> None:
    # Importing verl takes seconds; bad input is refused before.
    import torch
    from verl.model_merger.base_model_merger import ModelMergerConfig

    from verl_ext.merger import AdapterOnlyCheckpointError, AnyDtypeMerger

    config = ModelMergerConfig(
        operation="merge",
        backend="fsdp",
        local_dir=str(actor),
        target_dir=str(output),
        hf_model_config_path=str(actor / "huggingface"),
    )
    try:
        with redirect_stdout(None):  # it would name the temporary directory
            AnyDtypeMerger(config, getattr(torch, dtype) if dtype else None).merge_and_save()
    except AdapterOnlyCheckpointError as error:
        raise UserError(f"{error}: use them with the model that they were trained on") from error


def load_policy(checkpoint: Path) -> PreTrainedModel:
    """The policy of a checkpoint, in float32, through a temporary export. Raises as :func:`export` does."""
    import torch
    from transformers import AutoModelForCausalLM

    with tempfile.TemporaryDirectory() as scratch:
        export(checkpoint, Path(scratch) / "model", "float32")
        return AutoModelForCausalLM.from_pretrained(Path(scratch) / "model", dtype=torch.float32)
