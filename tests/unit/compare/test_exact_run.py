"""Runs of an exact study, of the smaller of the two tasks: what they measure, and that they go on where they were."""

import json
from pathlib import Path
from typing import Any

import pytest

from recipe.flowrl.__main__ import main
from recipe.flowrl.common import cache
from recipe.flowrl.compare import exact_run
from recipe.flowrl.compare.exact_run import Run, carry_out
from recipe.flowrl.one_process.trainer import Trainer
from recipe.flowrl.prepare.own_tasks import MAKERS

FEW = ("data.train_batch_size=4", "actor_rollout_ref.actor.ppo_mini_batch_size=2", "actor_rollout_ref.rollout.n=4")


@pytest.fixture(scope="module", autouse=True)
def prepared() -> None:
    """The task and its base policy, which a study makes before its runs."""
    for name in ("change", "change_qwen2"):
        MAKERS[name](cache.cache_directory() / name, print)


def points_of(run_dir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run_dir / exact_run.POINTS).read_text().splitlines()]


@pytest.mark.parametrize("staleness", [0, 3])
def test_a_run_that_was_cut_off_ends_as_if_it_had_not(
    staleness: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(("experiment=change_cpu", "algo=flowrl", f"run_dir={tmp_path}", *FEW), 4, 2, 6, 5, 1, staleness)
    for name in ("whole", "cut"):
        (tmp_path / name).mkdir()
    carry_out(run, tmp_path / "whole")
    whole = points_of(tmp_path / "whole")
    assert [point["step"] for point in whole] == [0, 2, 4] and whole[-1]["samples"] == (4 + staleness) * 16

    step, begun = Trainer.step, []

    def until_cut(trainer: Trainer) -> dict[str, float]:
        begun.append(trainer.steps_done)
        if len(begun) == staleness + 4:
            raise KeyboardInterrupt
        return step(trainer)

    monkeypatch.setattr(Trainer, "step", until_cut)
    with pytest.raises(KeyboardInterrupt):
        carry_out(run, tmp_path / "cut")
    assert points_of(tmp_path / "cut") == whole[:2] and not (tmp_path / "cut" / exact_run.DONE).exists()
    carry_out(run, tmp_path / "cut")
    again = [staleness + 2, staleness + 3]
    assert begun == [*range(staleness + 4), *again], "from the last evaluation on"
    assert points_of(tmp_path / "cut") == whole
    assert (tmp_path / "cut" / exact_run.DONE).exists() and not (tmp_path / "cut" / exact_run.STATE).exists()


def test_what_is_scored_is_what_the_reward_says_of_samples(tmp_path: Path) -> None:
    study = ["study=change", "algos=grpo,flowrl_plus_beta_3", "seeds=0", "steps=1", "puzzles=24", "samples=40", *FEW]
    assert main(["compare", *study, f"dir={tmp_path}"]) == 0
    header, *points = [json.loads(line) for line in (tmp_path / "change.jsonl").read_text().splitlines()]
    assert header["study"]["train_puzzles"] == 64
    assert [(point["variant"], point["step"]) for point in points] == [
        (variant, step) for variant in ("grpo", "flowrl_plus_beta_3") for step in (0, 1)
    ]
    for point in points:
        for split in ("train", "held_out"):
            scored, sampled = point[split]["1"], point[split]["sampled"]
            assert sampled["outside"] == 0, "no answer has two spellings"
            assert sampled["right"] == pytest.approx(scored["right"], abs=0.07), "four standard errors"
            assert 3 < scored["length"] < 16 and scored["effective"] > 5
    assert points[0]["train"]["1"]["kl_right"] == 0 < points[1]["train"]["1"]["kl_right"]
    assert points[0]["train"] == points[2]["train"] and points[1]["train"] != points[3]["train"]
    assert "flowrl_plus_beta_3" in (tmp_path / "change.html").read_text()
