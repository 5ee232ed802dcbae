"""Checkpoint to Hugging Face model directory: ``python -m recipe.flowrl.export CKPT_DIR OUT_DIR``.

verl's model merger does the work. The log-partition head isn't part of the policy, so it isn't exported.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING

from recipe.flowrl.errors import UserError, exit_status_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

DTYPES = ("float32", "bfloat16", "float16")


def export(checkpoint: Path, output: Path, dtype: str | None = None) -> None:
    """Write the policy of a checkpoint as a plain Hugging Face model directory with its tokenizer.

    A LoRA checkpoint becomes the base model with the adapter in ``lora_adapter/``, as verl's merger has it.

    Args:
        checkpoint: ``.../global_step_N`` or ``.../global_step_N/actor``, written by FSDP on any number of ranks.
        output: the directory to make. It appears only when it is complete.
        dtype: of the weights, one of ``DTYPES``; None keeps the checkpoint's.

    Raises:
        UserError: not a checkpoint or an incomplete one, or ``output`` holds something already.
    """
    actor = _actor_directory(checkpoint)
    if output.is_file() or (output.is_dir() and any(output.iterdir())):
        raise UserError(f"{output} exists already: name a directory that doesn't, or an empty one")
    output = output.absolute()  # "." has no name
    partial = output.with_name(f".{output.name}.{os.getpid()}.tmp")
    partial.mkdir(parents=True)
    try:
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
        ranks = int(json.loads((actor / "fsdp_config.json").read_text())["world_size"])
    except (ValueError, TypeError, KeyError):
        raise UserError(f"{actor / 'fsdp_config.json'} is damaged: it has no world_size") from None
    shards = [f"model_world_size_{ranks}_rank_{rank}.pt" for rank in range(ranks)]
    missing = [name for name in [*shards, "huggingface/config.json"] if not (actor / name).is_file()]
    if missing:
        raise UserError(f"{actor} is incomplete: {', '.join(missing)} missing; export another checkpoint")
    return actor


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


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0, 1 after a failure, 2 for bad input."""
    parser = argparse.ArgumentParser("python -m recipe.flowrl.export", description="Checkpoint to Hugging Face model.")
    parser.add_argument("checkpoint", type=Path, metavar="CKPT_DIR", help=".../global_step_N")
    parser.add_argument("output", type=Path, metavar="OUT_DIR", help="the model directory to make")
    parser.add_argument("--dtype", choices=DTYPES, help="of the weights; by default the checkpoint's")
    options = parser.parse_args(arguments)
    try:
        export(options.checkpoint, options.output, options.dtype)
    except BaseException as error:
        return exit_status_of(error)
    print(f"exported to {options.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
