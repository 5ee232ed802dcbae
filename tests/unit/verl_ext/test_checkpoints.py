"""A checkpoint appears whole or not at all, whatever happens on the way; old ones go only afterwards."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from checkpoint_directories import make_checkpoint, save
from omegaconf import OmegaConf

from verl_ext import checkpoint_files, files
from verl_ext.checkpoint import AtomicCheckpointMixin, CheckpointError
from verl_ext.checkpoint_files import PARTIAL, TRACKER, checkpoints, clear_partial, commit, tracked_step
from verl_ext.files import MANIFEST, manifest_problem, write_manifest


def contents(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def read_all(directory: Path) -> str | None:
    return manifest_problem(directory, progress=lambda done, total: None)


# ---- manifest ------------------------------------------------------------------------------------------------------


def test_a_manifest_names_every_file_and_finds_all_as_they_were(tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path, 1, ranks=2)
    names = set(contents(checkpoint))
    write_manifest(checkpoint)
    assert set(files._entries(checkpoint / MANIFEST)) == names
    told: list[tuple[int, int]] = []
    assert manifest_problem(checkpoint, lambda *progress: told.append(progress)) is None
    total = sum(len(content) for name, content in contents(checkpoint).items() if name != MANIFEST)
    assert max(told) == (total, total)


def test_a_manifest_finds_what_is_missing_truncated_or_changed(tmp_path: Path) -> None:
    file = make_checkpoint(tmp_path, 1) / "actor" / "optim_world_size_1_rank_0.pt"
    write_manifest(tmp_path / "global_step_1")
    whole = file.read_bytes()
    file.write_bytes(whole[:-1])
    assert manifest_problem(tmp_path / "global_step_1") == f"{file} has {len(whole) - 1} bytes instead of {len(whole)}"
    file.write_bytes(whole[:-1] + b"x")
    assert manifest_problem(tmp_path / "global_step_1") is None, "sizes only"
    assert read_all(tmp_path / "global_step_1") == f"{file} has changed (its SHA-256 differs)"
    file.unlink()
    assert manifest_problem(tmp_path / "global_step_1") == f"{file} is missing"


@pytest.mark.parametrize("text", ["", "{}", '{"files": {"a": 1}}', "[1]"])
def test_a_damaged_manifest_is_a_problem(text: str, tmp_path: Path) -> None:
    (tmp_path / MANIFEST).write_text(text)
    assert manifest_problem(tmp_path) == f"{tmp_path / MANIFEST} can't be read"


# ---- commit --------------------------------------------------------------------------------------------------------


def test_a_commit_puts_everything_in_place(tmp_path: Path) -> None:
    staged = contents(make_checkpoint(tmp_path / PARTIAL, 20, ranks=2))
    commit(tmp_path, 20, keep=None)
    place = tmp_path / "global_step_20"
    assert {name: content for name, content in contents(place).items() if name != MANIFEST} == staged
    assert read_all(place) is None
    assert tracked_step(tmp_path) == 20
    assert sorted(path.name for path in tmp_path.iterdir()) == ["global_step_20", TRACKER]


class Killed(BaseException):
    """The process is gone."""


def killing(monkeypatch: pytest.MonkeyPatch, at: int) -> Callable[[], int]:
    """Have the ``at``-th operation on the file system that changes or flushes something kill the process.

    Returns how many there have been.
    """
    count = 0

    def wrap(operation: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            nonlocal count
            if count >= at:
                raise Killed
            count += 1
            return operation(*args, **kwargs)

        return wrapped

    for name in ("rename", "replace", "fsync", "unlink"):
        monkeypatch.setattr(os, name, wrap(getattr(os, name)))
    monkeypatch.setattr(shutil, "rmtree", wrap(shutil.rmtree))
    return lambda: count


@pytest.mark.parametrize("replaced", [False, True], ids=["new step", "step saved before"])
def test_whenever_it_is_killed_the_tracker_names_a_whole_checkpoint(
    replaced: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed before each single operation, then cleared up as a launch does, then done again."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    seen, at, finished = set(), 0, False
    while not finished:
        directory = tmp_path / str(at)
        for step in (10, 20, 30) if replaced else (10, 20):
            save(directory, step)
        checkpoint_files.track(directory, 20)
        make_checkpoint(directory / PARTIAL, 30)
        with monkeypatch.context() as patch:
            operations = killing(patch, at)
            try:
                commit(directory, 30, keep=2)
                finished = True
            except Killed:
                pass
        assert operations() == at or finished
        tracked = tracked_step(directory)
        seen.add(tracked)
        assert read_all(directory / f"global_step_{tracked}") is None, at
        for path in checkpoints(directory).values():  # nor is any other a half
            assert read_all(path) is None, (at, path)
        clear_partial(directory)
        assert not (directory / PARTIAL).exists() and not list(directory.glob(f".{TRACKER}*"))
        make_checkpoint(directory / PARTIAL, 30)
        commit(directory, 30, keep=2)
        assert list(checkpoints(directory)) == [20, 30] and tracked_step(directory) == 30
        at += 1
    assert seen == {20, 30} and at > 15


def test_a_rank_whose_file_is_not_there(tmp_path: Path) -> None:
    """Nodes that don't share the directory."""
    save(tmp_path, 10)
    staged = make_checkpoint(tmp_path / PARTIAL, 20, ranks=2)
    (staged / "actor" / "optim_world_size_2_rank_1.pt").unlink()
    with pytest.raises(FileNotFoundError, match="optim_world_size_2_rank_1.pt is missing.*share"):
        commit(tmp_path, 20, keep=1)
    assert list(checkpoints(tmp_path)) == [10] and tracked_step(tmp_path) == 10
    shutil.rmtree(staged / "actor")
    with pytest.raises(FileNotFoundError, match="share"):
        commit(tmp_path, 20, keep=1)


# ---- retention -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keep", "left"), [(None, [10, 20, 30]), (0, [10, 20, 30]), (1, [30]), (2, [20, 30]), (9, [10, 20, 30])]
)
def test_so_many_stay(keep: int | None, left: list[int], tmp_path: Path) -> None:
    """Also those of earlier launches, of which this one knows nothing, and whole: ``data.pt`` goes with the rest."""
    for step in (10, 20):
        save(tmp_path, step)
    save(tmp_path, 30, keep=keep)
    assert list(checkpoints(tmp_path)) == left
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"global_step_{step}" for step in left] + [TRACKER]


def test_later_steps_of_another_branch_stay_and_are_replaced_when_reached(tmp_path: Path) -> None:
    for step in (10, 20, 30):
        save(tmp_path, step)
    checkpoint_files.track(tmp_path, 10)  # by hand, to go back
    save(tmp_path, 15, keep=1)
    assert list(checkpoints(tmp_path)) == [15, 20, 30] and tracked_step(tmp_path) == 15
    (tmp_path / "global_step_20" / "data.pt").write_text("old")
    save(tmp_path, 20, keep=1)
    assert list(checkpoints(tmp_path)) == [20, 30] and read_all(tmp_path / "global_step_20") is None


# ---- the trainer ---------------------------------------------------------------------------------------------------


class Base:
    """As much of verl's trainer as the mixin meets: its save, and a loop that saves at every step."""

    error: Exception | None = None

    def __init__(self, config: Any) -> None:
        self.config, self.global_steps, self.told = config, 0, []
        self.checkpoint_callback = SimpleNamespace(on_save=lambda **told: self.told.append(told["checkpoint_dir"]))

    def on_step_begin(self) -> None:
        pass

    def fit(self, steps: int) -> None:
        for self.global_steps in range(1, steps + 1):
            self.on_step_begin()
            self._save_checkpoint()

    def _save_checkpoint(self) -> None:
        settings = self.config.trainer
        assert settings.max_actor_ckpt_to_keep is None and settings.max_critic_ckpt_to_keep is None
        make_checkpoint(Path(settings.default_local_dir), self.global_steps)
        if self.error:
            raise self.error
        (Path(settings.default_local_dir) / TRACKER).write_text(str(self.global_steps))
        self.checkpoint_callback.on_save(trainer=self, global_step=self.global_steps, checkpoint_dir="too early")


class Trainer(AtomicCheckpointMixin, Base):
    pass


@pytest.fixture
def trainer(tmp_path: Path) -> Trainer:
    settings = {"default_local_dir": str(tmp_path), "max_actor_ckpt_to_keep": 2, "max_critic_ckpt_to_keep": 7}
    return Trainer(OmegaConf.create({"trainer": settings}))


def test_a_run_ends_with_its_last_checkpoint_whole(trainer: Trainer, tmp_path: Path) -> None:
    settings = OmegaConf.to_container(trainer.config)
    trainer.fit(4)
    assert list(checkpoints(tmp_path)) == [3, 4] and tracked_step(tmp_path) == 4
    assert read_all(tmp_path / "global_step_4") is None and not (tmp_path / PARTIAL).exists()
    assert trainer.told == [str(tmp_path / f"global_step_{step}") for step in (1, 2, 3, 4)]
    assert OmegaConf.to_container(trainer.config) == settings


def test_the_trainer_goes_on_while_the_checkpoint_is_flushed(
    trainer: Trainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    release = threading.Event()
    monkeypatch.setattr("verl_ext.checkpoint.commit", lambda *args: (release.wait(10), commit(*args)))
    trainer.global_steps = 1
    trainer._save_checkpoint()
    trainer.on_step_begin()
    assert tracked_step(tmp_path) is None and trainer.told == []
    release.set()
    trainer.wait_for_save()
    assert tracked_step(tmp_path) == 1 and trainer.told == [str(tmp_path / "global_step_1")]


@pytest.mark.parametrize("where", ["while a rank writes", "while it is flushed"])
def test_a_full_disk_leaves_the_earlier_checkpoint_and_says_so_in_a_line(
    where: str, trainer: Trainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, 1)
    before = contents(tmp_path)
    full = OSError(28, "No space left on device")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=2**20))
    if where == "while a rank writes":
        trainer.error = full
    else:
        monkeypatch.setattr(os, "fsync", lambda descriptor: (_ for _ in ()).throw(full))
    trainer.global_steps = 2
    with pytest.raises(CheckpointError) as raised:
        trainer._save_checkpoint()
        trainer.wait_for_save()
    message = str(raised.value)
    assert (
        "step 2 couldn't be saved" in message
        and "No space left on device" in message
        and "its disk is full (1 MiB free)" in message
    )
    assert f"the last one is {tmp_path / 'global_step_1'}" in message and "\n" not in message
    assert contents(tmp_path) == before and not (tmp_path / PARTIAL).exists() and trainer.told == []


def test_a_failed_save_ends_the_run_at_the_next_step(trainer: Trainer, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("verl_ext.checkpoint.commit", fail)
    with pytest.raises(CheckpointError, match="step 1 couldn't be saved, there is no earlier one"):
        trainer.fit(3)
    assert trainer.global_steps <= 2


def test_what_ended_the_run_is_what_it_reports(trainer: Trainer, tmp_path: Path) -> None:
    """And the save under way is waited for."""

    def fit(self: Base, steps: int) -> None:
        self.global_steps = 1
        self._save_checkpoint()
        raise ZeroDivisionError

    trainer.__class__ = type("Failing", (AtomicCheckpointMixin, type("FailingBase", (Base,), {"fit": fit})), {})
    with pytest.raises(ZeroDivisionError):
        trainer.fit(1)
    assert tracked_step(tmp_path) == 1 and read_all(tmp_path / "global_step_1") is None
