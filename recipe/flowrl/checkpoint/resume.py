"""The checkpoint that a launch continues from: chosen, verified, and made the one that verl will load."""

import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path

from omegaconf import DictConfig

from recipe.flowrl.common.errors import UserError
from recipe.flowrl.common.foreign import read_text
from recipe.flowrl.common.progress import HEARTBEAT_S, short_duration
from recipe.flowrl.reporting.console import RunConsole
from verl_ext.checkpoint_files import (
    PARTIAL,
    TRACKER,
    checkpoints,
    clear_partial,
    has_manifest,
    missing_rank_file,
    saved_ranks,
    track,
    tracked_step,
    truncated_rank_file,
    why_not_reshardable,
)
from verl_ext.files import MANIFEST, manifest_problem

_ANEW = "start anew with trainer.resume_mode=disable"

Progress = Callable[[int, int], None]
"""Called with the bytes read so far and the bytes in all."""

ProblemOf = Callable[[Path], str | None]
"""Says why a checkpoint isn't whole; None if it is."""


@dataclass(frozen=True)
class Resume:
    """Where a run continues. ``notes``: what a person should know of it, a line each."""

    checkpoint: Path | None
    notes: list[str] = field(default_factory=list)

    @property
    def step(self) -> int:
        """The step after which the run continues; 0 is a start from scratch."""
        return 0 if self.checkpoint is None else int(self.checkpoint.name.removeprefix("global_step_"))


def problem_in_sizes(checkpoint: Path) -> str | None:
    """Why a checkpoint isn't whole, from its files' names and sizes; None if nothing is wrong with these."""
    return _problem(checkpoint, None)


def choose(config: DictConfig, problem_of: ProblemOf = problem_in_sizes) -> Resume:
    """Find the checkpoint from which a launch continues. Writes nothing.

    ``resume_mode=auto`` takes the one that verl's tracker names, or one that was complete before the tracker could name
    it; if it isn't whole, the newest earlier one that is. ``resume_mode=resume_path`` takes the given one.

    Args:
        config: of the run.
        problem_of: decides whether a checkpoint is whole.

    Raises:
        UserError: there are checkpoints but none is whole, the given one isn't, or it doesn't fit this run's ranks.
    """
    if config.trainer.resume_mode == "disable":
        return Resume(None)
    if config.trainer.resume_mode == "resume_path":
        chosen = _given(config, problem_of)
    else:
        chosen = _newest_whole(Path(config.trainer.default_local_dir), problem_of)
    if chosen.checkpoint is None:
        return chosen
    return Resume(chosen.checkpoint, [*chosen.notes, *_notes(chosen.checkpoint, config)])


def verified(config: DictConfig, resume: Resume, console: RunConsole) -> Resume:
    """Verify the contents of the chosen checkpoint; where they are damaged, choose another one whose contents aren't.

    Args:
        config: of the run.
        resume: what :func:`choose` found.
        console: is told how far the verification is, and the notes of what comes of it.

    Raises:
        UserError: as :func:`choose`.
    """
    if resume.checkpoint is not None:
        with console.phase("verifying the checkpoint"):
            problem_of = cache(partial(_problem, progress=_told_now_and_then(console)))  # each is read once
            if problem_of(resume.checkpoint):
                resume = choose(config, problem_of)
    for note in resume.notes:
        console.message(f"note: {note}")
    return resume


def settle(config: DictConfig, resume: Resume) -> None:
    """Remove what an interrupted save left, and have verl's tracker name the chosen checkpoint."""
    directory = Path(config.trainer.default_local_dir)
    clear_partial(directory)
    if config.trainer.resume_mode == "auto" and resume.checkpoint and tracked_step(directory) != resume.step:
        track(directory, resume.step)


def _given(config: DictConfig, problem_of: ProblemOf) -> Resume:
    key, name = "trainer.resume_from_path", config.trainer.resume_from_path
    if not name:
        raise UserError(f"trainer.resume_mode=resume_path needs {key}: set it to a directory global_step_N")
    if re.fullmatch(r"global_step_\d+", Path(name).name) is None:
        raise UserError(f"{key}: {name} is no checkpoint: give a directory called global_step_N")
    if not Path(name).is_dir():
        raise UserError(f"{key}: {name} doesn't exist: give an existing checkpoint")
    if problem := problem_of(Path(name)):
        others = [path for path in reversed(checkpoints(Path(name).parent).values()) if path.name != Path(name).name]
        whole = next((path for path in others if not problem_in_sizes(path)), None)
        advice = f"{key}={whole} is whole" if whole else f"give another checkpoint, or {_ANEW}"
        raise UserError(f"{key}: {problem}: {advice}")
    return Resume(Path(name))


def _newest_whole(directory: Path, problem_of: ProblemOf) -> Resume:
    notes = []
    if (directory / PARTIAL).exists():
        notes.append(f"the last save into {directory} was interrupted; what it left is removed")
    there, tracked = checkpoints(directory), tracked_step(directory)
    if not there and not (directory / TRACKER).exists():
        return Resume(None, notes)
    candidates = _candidates(directory, there, tracked)
    problems = []
    if tracked not in there:
        content = read_text(directory / TRACKER, "replace").strip() if (directory / TRACKER).exists() else None
        named = f"names {content!r}, which isn't there" if content is not None else "is missing"
        problems.append(f"{directory / TRACKER} {named}")
    for step in candidates:
        if (problem := problem_of(there[step])) is None:
            if problems:
                notes.append(f"{'; '.join(problems)}: continuing from {there[step].name}, the newest whole checkpoint")
            elif step != tracked:
                notes.append(f"{there[step].name} was complete when its save was interrupted: continuing from it")
            return Resume(there[step], notes)
        problems.append(problem)
    raise UserError(f"no whole checkpoint in {directory}: {'; '.join(problems)}. Restore one of them, or {_ANEW}")


def _candidates(directory: Path, there: dict[int, Path], tracked: int | None) -> list[int]:
    """Steps in the order in which to try them.

    The tracker may be set back by hand, to continue from an earlier step; then it is newer than the later checkpoints.
    """
    steps = sorted(there, reverse=True)
    if tracked not in there:
        return steps
    written = (directory / TRACKER).stat().st_mtime_ns

    def later(step: int) -> bool:
        return step > tracked and has_manifest(there[step]) and (there[step] / MANIFEST).stat().st_mtime_ns > written

    return [step for step in steps if step <= tracked or later(step)]


def _problem(checkpoint: Path, progress: Progress | None) -> str | None:
    """Why it isn't whole, or None."""
    actor = checkpoint / "actor"
    if not saved_ranks(actor):
        return f"{actor} holds no weights (model_world_size_*.pt)"
    if missing := missing_rank_file(checkpoint):
        return f"{missing.parent} lacks {missing.name}"
    if has_manifest(checkpoint):
        return manifest_problem(checkpoint, progress)
    truncated = truncated_rank_file(checkpoint)
    return f"{truncated} is truncated" if truncated else None


def _notes(checkpoint: Path, config: DictConfig) -> list[str]:
    notes = []
    if not has_manifest(checkpoint):
        notes.append(f"{checkpoint} has no {MANIFEST} (saved by verl alone?): contents can't be verified")
    ranks, saved = config.trainer.nnodes * config.trainer.n_gpus_per_node, saved_ranks(checkpoint / "actor")
    if ranks not in saved:
        reason = why_not_reshardable(checkpoint / "actor")
        if config.actor_rollout_ref.actor.strategy != "fsdp2":
            reason = reason or "this run's actor isn't FSDP2 (actor_rollout_ref.actor.strategy)"
        if reason:
            raise UserError(
                f"{checkpoint / 'actor'} was saved by {max(saved)} ranks, and this run has {ranks} (trainer.nnodes * "
                f"trainer.n_gpus_per_node); {reason}: run with {max(saved)}, or {_ANEW}"
            )
        notes.append(f"{checkpoint.name} was saved by {max(saved)} ranks and is loaded by {ranks}")
    return notes


def _told_now_and_then(console: RunConsole) -> Progress:
    began = last = time.monotonic()

    def progress(done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= HEARTBEAT_S:
            last, left = now, (now - began) * (total - done) / done
            console.message(f"verified {done / total:.0%} of {total / 2**30:.1f} GiB  ETA {short_duration(left)}")

    return progress
