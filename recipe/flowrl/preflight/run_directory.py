"""The directory that the run writes to: room, rights, and whether the run can continue from what is there."""

import os
import shutil
from pathlib import Path

from omegaconf import DictConfig

from recipe.flowrl.checkpoint.resume import choose
from recipe.flowrl.common.errors import UserError

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
    """Check that the run can continue where it is told to, or where it stopped. Contents aren't read.

    Raises:
        UserError: it can't; see :func:`recipe.flowrl.checkpoint.resume.choose`.
    """
    choose(config)


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
