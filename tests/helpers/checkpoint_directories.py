"""Crafted checkpoint directories in verl's layout, for tests."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

from verl_ext.checkpoint_files import PARTIAL, commit

KINDS = ("model", "optim", "extra_state")


def make_checkpoint(directory: Path, step: int, ranks: int = 1, fsdp: int = 2) -> Path:
    """``directory/global_step_<step>`` as verl leaves it, with archives of a few bytes; no manifest, no tracker."""
    checkpoint = directory / f"global_step_{step}"
    actor = checkpoint / "actor"
    (actor / "huggingface").mkdir(parents=True)
    (actor / "huggingface" / "config.json").write_text("{}")
    (actor / "fsdp_config.json").write_text(json.dumps({"FSDP_version": fsdp, "world_size": ranks}))
    (actor / "log_partition.pt").write_bytes(b"head")
    for kind in KINDS:
        for rank in range(ranks):
            with zipfile.ZipFile(actor / f"{kind}_world_size_{ranks}_rank_{rank}.pt", "w") as archive:
                archive.writestr("data", f"{kind} {step} {rank}")
    (checkpoint / "data.pt").write_text(str(step))
    return checkpoint


def save(directory: Path, step: int, ranks: int = 1, keep: int | None = None, fsdp: int = 2) -> Path:
    """A whole checkpoint, as a trainer of this project leaves it."""
    make_checkpoint(directory / PARTIAL, step, ranks, fsdp)
    commit(directory, step, keep)
    return directory / f"global_step_{step}"
