"""Checkpoints that appear whole or not at all, made so in the background while the trainer goes on."""

import logging
import shutil
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig
from verl.trainer.ppo.checkpoint_callback import CheckpointCallback

from verl_ext.checkpoint_files import PARTIAL, clear_partial, commit, step_name, tracked_step

logger = logging.getLogger(__name__)

_FULL = 2**26  # torch says of a full disk that it is at an unexpected position


if TYPE_CHECKING:
    from verl.trainer.ppo.v1.trainer_base import PPOTrainer as _Trainer
else:
    _Trainer = object


class CheckpointError(Exception):
    """A checkpoint couldn't be saved. The earlier ones and the tracker are as they were. The message is one line."""


@dataclass(frozen=True)
class _Save:
    """One that is being committed in the background."""

    directory: Path
    step: int
    future: Future


class AtomicCheckpointMixin(_Trainer):
    """Put in front of a verl V1 trainer class: its checkpoints go through :func:`verl_ext.checkpoint_files.commit`.

    verl's own save, in which the workers write their files, is what a step waits for. Flushing, checksums, renaming and
    the removal of old checkpoints happen in a thread of the trainer, which is waited for before the next save, before
    the run ends, and before it fails. Only the trainer commits, after all ranks have returned, so with several nodes
    ``trainer.default_local_dir`` must be shared. ``max_actor_ckpt_to_keep`` counts whole directories;
    ``max_critic_ckpt_to_keep`` has no effect of its own.
    """

    checkpoint_callback: CheckpointCallback

    def __init__(self, config: DictConfig) -> None:
        super().__init__(config)
        self._committer = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._save_under_way: _Save | None = None

    def fit(self, *args: Any, **kwargs: Any) -> None:
        try:
            super().fit(*args, **kwargs)
        except BaseException:
            try:
                self.wait_for_save()
            except Exception:  # what ended the run is what it reports
                logger.exception("while the run was ending")
            raise
        self.wait_for_save()

    def on_step_begin(self) -> None:
        if self._save_under_way is not None and self._save_under_way.future.done():
            self.wait_for_save()
        super().on_step_begin()

    def _save_checkpoint(self) -> None:
        self.wait_for_save()
        settings = self.config.trainer
        directory = Path(settings.default_local_dir).absolute()
        keep = 1 if settings.get("remove_previous_ckpt_in_save") else settings.get("max_actor_ckpt_to_keep")
        clear_partial(directory)
        try:
            with self._verl_saves_into(directory / PARTIAL):
                super()._save_checkpoint()
        except Exception as error:
            raise _failed(directory, self.global_steps, error) from None
        future = self._committer.submit(commit, directory, self.global_steps, keep)
        self._save_under_way = _Save(directory, self.global_steps, future)

    def wait_for_save(self) -> None:
        """Wait until the last checkpoint is whole and in place.

        Raises:
            CheckpointError: it couldn't be saved.
        """
        save, self._save_under_way = self._save_under_way, None
        if save is None:
            return
        try:
            save.future.result()
        except Exception as error:
            raise _failed(save.directory, save.step, error) from None
        place = save.directory / step_name(save.step)
        self.checkpoint_callback.on_save(
            trainer=self, global_step=save.step, checkpoint_dir=str(place), async_save=False
        )

    @contextmanager
    def _verl_saves_into(self, directory: Path) -> Iterator[None]:
        """Have verl write tracker and checkpoint there, keep its hands off older ones, and tell nobody yet."""
        settings, callback = self.config.trainer, self.checkpoint_callback
        ours = {
            "default_local_dir": str(directory),
            "max_actor_ckpt_to_keep": None,
            "max_critic_ckpt_to_keep": None,
            "remove_previous_ckpt_in_save": False,
        }
        theirs = {name: settings[name] for name in ours if name in settings}
        try:
            settings.update({name: ours[name] for name in theirs})
            self.checkpoint_callback = CheckpointCallback()
            yield
        finally:
            settings.update(theirs)
            self.checkpoint_callback = callback


def _failed(directory: Path, step: int, error: Exception) -> CheckpointError:
    """Clear away what there is of the checkpoint, and say in one line what happened."""
    logger.error("saving the checkpoint of step %d failed", step, exc_info=error)
    free = shutil.disk_usage(directory).free  # before there is room again
    full = f"its disk is full ({free / 2**20:.0f} MiB free): " if free < _FULL else ""
    clear_partial(directory)
    last = tracked_step(directory)
    left = f"the last one is {directory / step_name(last)}" if last is not None else "there is no earlier one"
    reason = " ".join(str(getattr(error, "cause", None) or error).split())
    return CheckpointError(f"the checkpoint of step {step} couldn't be saved, {left}: {full}{reason[:200]}")
