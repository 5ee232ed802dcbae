"""verl's checkpoint directory: what is in it, and how a checkpoint comes into it whole. Standard library only."""

import json
import os
import re
import shutil
import zipfile
from pathlib import Path

from verl_ext.files import MANIFEST, flush, write_manifest, write_text

TRACKER = "latest_checkpointed_iteration.txt"
"""verl's file that names the step of the checkpoint to continue from."""

PARTIAL = ".partial"
"""Directory beside the checkpoints for whatever isn't one yet, or no longer."""

RANK_FILE = re.compile(r"(\w+)_world_size_(\d+)_rank_(\d+)\.pt")
RESHARDABLE = frozenset({"model", "optim", "extra_state"})
"""verl's files of which each rank has one; these can be cut anew for another number of ranks."""


def step_name(step: int) -> str:
    """Name of the directory of a step's checkpoint."""
    return f"global_step_{step}"


def checkpoints(directory: Path) -> dict[int, Path]:
    """Step -> its directory, whole or not, the first step first."""
    found = {}
    for path in directory.glob("global_step_*"):
        if path.is_dir() and (match := re.fullmatch(r"global_step_(\d+)", path.name)):
            found[int(match[1])] = path
    return dict(sorted(found.items()))


def tracked_step(directory: Path) -> int | None:
    """The step that verl's tracker names; None if there is no tracker, or no number in it."""
    try:
        content = (directory / TRACKER).read_text().strip()
    except (OSError, UnicodeDecodeError):
        return None
    return int(content) if re.fullmatch(r"[0-9]+", content) else None


def track(directory: Path, step: int) -> None:
    """Make ``step`` the one that the tracker names."""
    write_text(directory / TRACKER, str(step), durable=True)


def commit(directory: Path, step: int, keep: int | None) -> None:
    """Make the checkpoint that lies in ``directory/.partial`` one of ``directory``'s, whole or not at all.

    In this order: every file is flushed and entered in the manifest; the directory is renamed into place; the tracker
    names it; older checkpoints go. After a crash in between, what the tracker names is whole.

    Args:
        directory: verl's ``trainer.default_local_dir``.
        step: ``.partial/global_step_<step>`` is the new one. One of the same step is replaced.
        keep: how many checkpoints stay, the new one and those of the steps before it; None or less than 1: all. Later
            steps' are another branch of the run's history and stay as they are.

    Raises:
        FileNotFoundError: the file of a rank isn't there.
        OSError: the disk is full, say; the tracker and what it names are as before.
    """
    staged, place = directory / PARTIAL / step_name(step), directory / step_name(step)
    actor = staged / "actor"
    if missing := missing_rank_file(staged) if actor.is_dir() else actor:
        raise FileNotFoundError(
            f"{missing} is missing, though its rank has written it: the checkpoint directory must be on a file system "
            "that all nodes share"
        )
    write_manifest(staged)
    flush(staged)
    if place.exists():
        _discard(place)
    os.rename(staged, place)
    flush(directory)
    track(directory, step)
    _retain(directory, step, keep)
    clear_partial(directory)


def clear_partial(directory: Path) -> bool:
    """Remove what an interrupted save left. Returns whether there was anything."""
    for temporary in directory.glob(f".{TRACKER}.*"):
        temporary.unlink(missing_ok=True)
    if not (directory / PARTIAL).exists():
        return False
    shutil.rmtree(directory / PARTIAL, ignore_errors=True)
    return True


def _retain(directory: Path, newest: int, keep: int | None) -> None:
    if keep is None or keep < 1:
        return
    for path in [path for step, path in checkpoints(directory).items() if step <= newest][:-keep]:
        _discard(path)


def _discard(checkpoint: Path) -> None:
    """Take it away by one rename, so that no half of it is ever seen as a checkpoint; then delete it."""
    away = checkpoint.parent / PARTIAL / f"discarded_{checkpoint.name}"
    away.parent.mkdir(exist_ok=True)
    shutil.rmtree(away, ignore_errors=True)
    os.rename(checkpoint, away)
    shutil.rmtree(away, ignore_errors=True)


# ---- what a checkpoint consists of ---------------------------------------------------------------------------------


def has_manifest(checkpoint: Path) -> bool:
    """Whether it was saved by :func:`commit`; verl itself writes none."""
    return (checkpoint / MANIFEST).is_file()


def saved_ranks(actor: Path) -> set[int]:
    """Numbers of ranks of which ``actor`` holds the model."""
    return {ranks for kind, ranks in _rank_files(actor) if kind == "model"}


def missing_rank_file(checkpoint: Path) -> Path | None:
    """The first file that lacks in a set of which each rank has one, in the actor's or the critic's directory."""
    for part in sorted(path for path in checkpoint.iterdir() if path.is_dir()):
        for (kind, ranks), found in sorted(_rank_files(part).items()):
            for rank in range(ranks):
                if rank not in found:
                    return part / f"{kind}_world_size_{ranks}_rank_{rank}.pt"
    return None


def truncated_rank_file(checkpoint: Path) -> Path | None:
    """The first rank's file that ``torch.save`` can't have finished: what it writes ends like a ZIP archive."""
    files = sorted(path for path in checkpoint.glob("*/*.pt") if RANK_FILE.fullmatch(path.name))
    return next((path for path in files if not zipfile.is_zipfile(path)), None)


def why_not_reshardable(actor: Path) -> str | None:
    """Why the checkpoint fits only as many ranks as wrote it, or None if it can be cut anew."""
    try:
        version = json.loads((actor / "fsdp_config.json").read_text())["FSDP_version"]
    except (OSError, ValueError, LookupError, TypeError):
        return f"{actor / 'fsdp_config.json'} doesn't say how it is sharded"
    if version != 2:
        return f"it was written by FSDP{version}; only FSDP2's can be cut anew"
    other = {kind for kind, _ in _rank_files(actor)} - RESHARDABLE
    return f"its {min(other)} files can't be cut anew" if other else None


def _rank_files(part: Path) -> dict[tuple[str, int], set[int]]:
    """(kind, number of ranks) -> the ranks that have a file."""
    found: dict[tuple[str, int], set[int]] = {}
    for path in part.glob("*_world_size_*_rank_*.pt"):
        if match := RANK_FILE.fullmatch(path.name):
            found.setdefault((match[1], int(match[2])), set()).add(int(match[3]))
    return found
