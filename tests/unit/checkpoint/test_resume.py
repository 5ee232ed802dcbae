"""Which checkpoint a launch continues from, what it says of the others, and when it refuses."""

from __future__ import annotations

import io
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from checkpoint_directories import make_checkpoint, save
from omegaconf import DictConfig, OmegaConf

from recipe.flowrl.checkpoint.resume import choose, settle, verified
from recipe.flowrl.common.errors import UserError
from recipe.flowrl.reporting.console import RunConsole
from verl_ext.checkpoint_files import PARTIAL, TRACKER, track, tracked_step
from verl_ext.files import MANIFEST

OPTIMIZER = "actor/optim_world_size_1_rank_0.pt"


def configuration(directory: Path, **trainer: Any) -> DictConfig:
    defaults = {"resume_mode": "auto", "resume_from_path": None, "default_local_dir": str(directory), "nnodes": 1}
    actor = {"actor": {"strategy": "fsdp2"}}
    return OmegaConf.create(
        {"trainer": {**defaults, "n_gpus_per_node": 1, **trainer}, "actor_rollout_ref": actor},
    )


def launched(config: DictConfig) -> tuple[int, str]:
    """The step that a launch continues after, and what it says; as a launch does, with contents verified."""
    output = io.StringIO()
    with RunConsole(output) as console:
        resume = verified(config, choose(config), console)
    settle(config, resume)
    return resume.step, output.getvalue()


def refusal(config: DictConfig) -> str:
    with pytest.raises(UserError) as raised:
        launched(config)
    assert "\n" not in str(raised.value)
    return str(raised.value)


@pytest.fixture
def two(tmp_path: Path) -> Path:
    """A directory with whole checkpoints of steps 10 and 20."""
    for step in (10, 20):
        save(tmp_path, step)
    return tmp_path


def damage(how: str, checkpoint: Path) -> str:
    """Returns what must be said of it."""
    file = checkpoint / OPTIMIZER
    if how == "a rank's file is missing":
        file.unlink()
        return f"{file} is missing"
    if how == "another file is missing":
        (checkpoint / "data.pt").unlink()
        return f"{checkpoint / 'data.pt'} is missing"
    if how == "truncated":
        size = file.stat().st_size
        os.truncate(file, size - 5)
        return f"{file} has {size - 5} bytes instead of {size}"
    if how == "changed":
        content = bytearray(file.read_bytes())
        content[40] ^= 1
        file.write_bytes(content)
        return f"{file} has changed"
    if how == "no manifest that can be read":
        (checkpoint / MANIFEST).write_text("{")
        return f"{checkpoint / MANIFEST} can't be read"
    shutil.rmtree(checkpoint / "actor")
    return f"{checkpoint / 'actor'} holds no weights"


DAMAGES = [
    "a rank's file is missing", "another file is missing", "truncated", "changed", "no manifest that can be read",
    "no weights",
]  # fmt: skip


def test_a_fresh_start_says_nothing(tmp_path: Path) -> None:
    assert launched(configuration(tmp_path / "not there yet")) == (0, "")
    assert not (tmp_path / "not there yet").exists()


def test_the_tracker_names_the_checkpoint(two: Path) -> None:
    step, said = launched(configuration(two))
    assert step == 20 and "note" not in said and "verifying the checkpoint" in said


def test_a_step_written_into_the_tracker_by_hand_counts(two: Path) -> None:
    track(two, 10)
    assert launched(configuration(two))[0] == 10
    assert launched(configuration(two))[0] == 10, "still so at the next launch"


@pytest.mark.parametrize("how", DAMAGES)
def test_the_newest_whole_checkpoint_instead_of_a_damaged_one(how: str, two: Path) -> None:
    said_of_it = damage(how, two / "global_step_20")
    step, said = launched(configuration(two))
    assert step == 10 and tracked_step(two) == 10, "verl reads the tracker"
    notes = [line for line in said.splitlines() if line.startswith("note: ")]
    assert len(notes) == 1 and said_of_it in notes[0] and "continuing from global_step_10" in notes[0]
    assert launched(configuration(two))[0] == 10


@pytest.mark.parametrize("how", DAMAGES)
def test_never_from_scratch_where_there_are_checkpoints(how: str, two: Path) -> None:
    said = [damage(how, two / f"global_step_{step}") for step in (10, 20)]
    message = refusal(configuration(two))
    assert all(part in message for part in said)
    assert "no whole checkpoint" in message and "trainer.resume_mode=disable" in message
    assert tracked_step(two) == 20, "nothing is changed"
    assert launched(configuration(two, resume_mode="disable"))[0] == 0


@pytest.mark.parametrize("how", DAMAGES)
def test_a_given_checkpoint_is_that_one_or_none(how: str, two: Path) -> None:
    given = configuration(two, resume_mode="resume_path", resume_from_path=f"{two}/global_step_20/")
    assert launched(given)[0] == 20
    said = damage(how, two / "global_step_20")
    message = refusal(given)
    assert said in message and f"trainer.resume_from_path={two / 'global_step_10'} is whole" in message
    if how != "changed":  # whose contents are read only once it is given
        damage(how, two / "global_step_10")
        assert "trainer.resume_mode=disable" in refusal(given)


@pytest.mark.parametrize(
    ("path", "part"),
    [
        (None, "resume_path needs trainer.resume_from_path"),
        ("/nonexistent/global_step_3", "/nonexistent/global_step_3 doesn't exist"),
        ("/tmp", "/tmp is no checkpoint"),
    ],
)
def test_given_paths_that_are_none(path: str | None, part: str, tmp_path: Path) -> None:
    message = refusal(configuration(tmp_path, resume_mode="resume_path", resume_from_path=path))
    assert part in message and "trainer.resume_from_path" in message


@pytest.mark.parametrize("content", ["30", "", "x", None])
def test_a_tracker_that_names_no_checkpoint(content: str | None, two: Path) -> None:
    """verl alone would start from scratch and overwrite the checkpoints, or fail on the number."""
    (two / TRACKER).unlink()
    if content is not None:
        (two / TRACKER).write_text(content)
    step, said = launched(configuration(two))
    assert step == 20 == tracked_step(two) and "newest whole checkpoint" in said
    assert (repr(content) if content is not None else "is missing") in said


def test_a_tracker_alone_is_no_start_from_scratch(tmp_path: Path) -> None:
    (tmp_path / TRACKER).write_text("20")
    assert f"no whole checkpoint in {tmp_path}" in refusal(configuration(tmp_path))


def test_an_interrupted_save_is_cleared_away(two: Path) -> None:
    make_checkpoint(two / PARTIAL, 30)
    config = configuration(two)
    assert choose(config).step == 20 and (two / PARTIAL).exists(), "choosing writes nothing"
    step, said = launched(config)
    assert step == 20 and "was interrupted" in said and not (two / PARTIAL).exists()
    assert launched(config)[1].count("note") == 0


def test_an_interrupted_first_save_is_a_start_from_scratch_that_says_so(tmp_path: Path) -> None:
    make_checkpoint(tmp_path / PARTIAL, 10)
    step, said = launched(configuration(tmp_path))
    assert step == 0 and "was interrupted" in said and not (tmp_path / PARTIAL).exists()


def test_a_checkpoint_completed_before_the_tracker_could_name_it(two: Path) -> None:
    before = (two / TRACKER).stat()
    save(two, 30)
    (two / TRACKER).write_text("20")
    os.utime(two / TRACKER, ns=(before.st_atime_ns, before.st_mtime_ns))  # as a kill between the renames leaves it
    step, said = launched(configuration(two))
    assert step == 30 == tracked_step(two) and "global_step_30 was complete" in said


def test_verls_own_checkpoints_are_taken_with_a_warning(tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path, 10)
    (tmp_path / TRACKER).write_text("10")
    step, said = launched(configuration(tmp_path))
    assert step == 10 and f"{checkpoint} has no manifest.json" in said
    os.truncate(checkpoint / OPTIMIZER, 20)
    assert f"{checkpoint / OPTIMIZER} is truncated" in refusal(configuration(tmp_path))


def test_a_rank_that_is_missing_among_several(tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path, 10, ranks=4)
    (checkpoint / "actor" / "optim_world_size_4_rank_2.pt").unlink()
    assert f"{checkpoint / 'actor'} lacks optim_world_size_4_rank_2.pt" in refusal(configuration(tmp_path))


@pytest.mark.parametrize(("saved", "ranks"), [(2, 1), (1, 2), (4, 8)])
def test_another_number_of_ranks_is_fine_and_said(saved: int, ranks: int, tmp_path: Path) -> None:
    save(tmp_path, 10, ranks=saved)
    step, said = launched(configuration(tmp_path, n_gpus_per_node=ranks))
    assert step == 10 and f"global_step_10 was saved by {saved} ranks and is loaded by {ranks}" in said
    assert "note" not in launched(configuration(tmp_path, n_gpus_per_node=saved))[1]


def test_another_number_of_ranks_that_can_not_be(tmp_path: Path) -> None:
    save(tmp_path / "fsdp1", 10, ranks=2, fsdp=1)
    message = refusal(configuration(tmp_path / "fsdp1"))
    assert "saved by 2 ranks, and this run has 1" in message and "FSDP1" in message and "run with 2" in message

    checkpoint = make_checkpoint(tmp_path / "moved", 10, ranks=2)
    for rank in range(2):
        shutil.copy(
            checkpoint / f"actor/model_world_size_2_rank_{rank}.pt",
            checkpoint / f"actor/reference_world_size_2_rank_{rank}.pt",
        )
    assert "its reference files can't be cut anew" in refusal(configuration(tmp_path / "moved"))
    assert launched(configuration(tmp_path / "moved", n_gpus_per_node=2))[0] == 10

    save(tmp_path / "run", 10, ranks=2)
    config = configuration(tmp_path / "run")
    config.actor_rollout_ref.actor.strategy = "fsdp"
    assert "actor_rollout_ref.actor.strategy" in refusal(config)
    (tmp_path / "run" / "global_step_10" / "actor" / "fsdp_config.json").write_text(json.dumps({}))
    (tmp_path / "run" / "global_step_10" / MANIFEST).unlink()
    assert "fsdp_config.json doesn't say" in refusal(configuration(tmp_path / "run"))
