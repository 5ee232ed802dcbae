"""The directory that the run writes to, and the checkpoint that it continues from."""

import os
import re
import shutil
from pathlib import Path

from omegaconf import DictConfig

from recipe.flowrl.errors import UserError

_TRACKER = "latest_checkpointed_iteration.txt"
_FREE_DISK = 2**30
_BYTES_PER_PARAMETER = 12  # float32 weights and Adam's two moments


def check_directories(config: DictConfig) -> None:
    """Check that ``run_dir`` and ``cache_dir`` can be written, and have 1 GiB left.

    Raises:
        UserError: they can't, or have less.
    """
    directories = {"run_dir": config.run_dir, "trainer.default_local_dir": config.trainer.default_local_dir}
    if config.prepare.data or config.prepare.model:
        directories["cache_dir"] = config.cache_dir
    for key, name in directories.items():
        existing = _existing_ancestor(Path(name))
        if not existing.is_dir():
            raise UserError(f"{key}: {existing} is a file, not a directory: choose another")
        if not os.access(existing, os.W_OK | os.X_OK):
            raise UserError(f"{key}: {existing} can't be written: choose another directory with {key}=...")
        _check_free(existing, key, _FREE_DISK)


def check_checkpoint_space(config: DictConfig, parameters: int) -> None:
    """Check that a checkpoint of a model of ``parameters`` parameters fits on the disk.

    Raises:
        UserError: it doesn't.
    """
    if config.trainer.save_freq > 0:
        existing = _existing_ancestor(Path(config.trainer.default_local_dir))
        _check_free(existing, "trainer.default_local_dir", parameters * _BYTES_PER_PARAMETER)


def check_resume(config: DictConfig) -> None:
    """Check that the checkpoint from which verl would continue is there, whole, and of as many ranks.

    Raises:
        UserError: it isn't. verl would start from scratch and overwrite it, or fail on each rank.
    """
    if config.trainer.resume_mode == "disable":
        return
    if config.trainer.resume_mode == "resume_path":
        step = _given_checkpoint(config.trainer.resume_from_path)
    else:
        step = _latest_checkpoint(Path(config.trainer.default_local_dir))
    if step is not None:
        _check_complete(step / "actor", config.trainer.nnodes * config.trainer.n_gpus_per_node)


def _given_checkpoint(name: str | None) -> Path:
    key = "trainer.resume_from_path"
    if not name:
        raise UserError(f"trainer.resume_mode=resume_path needs {key}: set it to a directory global_step_N")
    if re.fullmatch(r"global_step_\d+", Path(name).name) is None:
        raise UserError(f"{key}: {name} is no checkpoint: give a directory called global_step_N")
    if not Path(name).is_dir():
        raise UserError(f"{key}: {name} doesn't exist: give an existing checkpoint")
    return Path(name)


def _latest_checkpoint(directory: Path) -> Path | None:
    tracker = directory / _TRACKER
    if not tracker.is_file():
        return None
    content = tracker.read_text().strip()
    step = directory / f"global_step_{content}"
    if not content.isdecimal() or not step.is_dir():
        saved = sorted((path.name for path in directory.glob("global_step_*")), key=len)
        there = f"there are {', '.join(saved)}" if saved else "there is none"
        raise UserError(
            f"{tracker} names the checkpoint {content!r}, which is missing ({there}): write a step that is there into "
            "it, or start anew with trainer.resume_mode=disable"
        )
    return step


def _check_complete(actor: Path, ranks: int) -> None:
    advice = "resume from another checkpoint, or start anew with trainer.resume_mode=disable"
    found = {}
    for file in actor.glob("model_world_size_*_rank_*.pt"):
        world_size, rank = map(int, re.findall(r"\d+", file.name))
        found.setdefault(world_size, set()).add(rank)
    if not found:
        raise UserError(f"{actor} holds no weights of a checkpoint (model_world_size_*.pt): {advice}")
    if ranks not in found:
        saved = max(found)
        raise UserError(
            f"{actor} was saved by {saved} ranks, and this run has {ranks} (trainer.nnodes * trainer.n_gpus_per_node): "
            f"run with {saved}, or start anew with trainer.resume_mode=disable"
        )
    if missing := set(range(ranks)) - found[ranks]:
        raise UserError(f"{actor} lacks model_world_size_{ranks}_rank_{min(missing)}.pt: {advice}")


def _existing_ancestor(path: Path) -> Path:
    path = path.expanduser().absolute()
    return next(ancestor for ancestor in (path, *path.parents) if ancestor.exists())


def _check_free(directory: Path, key: str, needed: int) -> None:
    free = shutil.disk_usage(directory).free
    if free < needed:
        raise UserError(
            f"{key}: {free / 2**30:.1f} GiB left on the disk of {directory}, {needed / 2**30:.1f} GiB needed: "
            "make room or choose another directory"
        )
