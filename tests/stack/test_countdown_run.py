"""``experiment=countdown_cpu`` through the real stack: verl's V1 trainer, Ray, vLLM, FSDP2."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from runs import PROJECT, TINY, Run, finish, start
from torch.distributed.tensor import DTensor
from torch.utils._pytree import keystr, tree_flatten_with_path, tree_map_only

from verl_ext.checkpoint_files import PARTIAL, TRACKER
from verl_ext.files import manifest_problem


def test_steps_train_policy_and_head(flowrl_run: Run) -> None:
    steps = [flowrl_run.metrics[step] for step in (1, 2, 3, 4)]
    assert all(step["actor/grad_norm"] > 0 for step in steps)
    assert all(step["actor/flowrl/log_partition_grad_norm"] > 0 for step in steps)
    assert len({step["actor/flowrl/log_z"] for step in steps}) == 4
    assert steps[0]["actor/flowrl/ref_kl"] == pytest.approx(0.0, abs=1e-6), "the policy starts at the reference"
    assert steps[3]["actor/flowrl/ref_kl"] > 1e-6
    assert [step["train/missing_rollouts"] for step in steps] == [0] * 4


def test_rollout_and_trainer_agree_on_probabilities(flowrl_run: Run) -> None:
    """After every weight sync, in float32: what vLLM samples from is what the actor holds."""
    for step in (1, 2, 3, 4):
        assert flowrl_run.metrics[step]["training/rollout_probs_diff_max"] < 1e-4


def test_it_checks_itself(flowrl_run: Run) -> None:
    """Before the first update, and after the sync that follows it, not again."""
    for point in ("at the start", "after the first weight sync"):
        line = f"self-check {point}: log-probs agree (apart on average, in nats: of rollout server and trainer"
        assert flowrl_run.output.count(line) == 1
    checked = [step for step in (1, 2, 3, 4) if "actor/self_check/rollout_mean" in flowrl_run.metrics[step]]
    assert checked == [1, 2]
    assert 0 < flowrl_run.metrics[2]["actor/self_check/rollout_mean"] < 1e-4


def test_solutions_are_counted(flowrl_run: Run) -> None:
    first = flowrl_run.metrics[1]
    assert 0 < first["train/solve_rate"] < 1
    assert 0 < first["train/distinct_solutions"] <= 4
    validations = [flowrl_run.metrics[step] for step in (0, 2, 4)]
    # Of one validation's sixteen answers none may be right.
    assert 0 < max(metrics["val/countdown/solution_coverage"] for metrics in validations) <= 1
    assert all("val-core/countdown/acc/mean@2" in metrics for metrics in validations)


def test_what_a_run_leaves(flowrl_run: Run) -> None:
    run_dir = flowrl_run.run_dir
    assert OmegaConf.load(run_dir / "config.yaml").flowrl.beta == 15.0
    report = (run_dir / "report.html").read_text()
    assert "<svg" in report and 'src="http' not in report
    assert len((run_dir / "rollouts" / "4.jsonl").read_text().splitlines()) == 8 * 4
    sample = json.loads((run_dir / "validation" / "4.jsonl").read_text().splitlines()[0])
    assert {"input", "output", "acc", "solution"} <= sample.keys()
    assert (run_dir / "checkpoints" / "latest_checkpointed_iteration.txt").read_text() == "4"
    actor = {path.name for path in (flowrl_run.checkpoint(4) / "actor").iterdir()}
    assert {"log_partition.pt", "model_world_size_1_rank_0.pt", "optim_world_size_1_rank_0.pt"} <= actor


def test_no_other_machine_can_reach_a_run(flowrl_run: Run) -> None:
    """TransferQueue unpickles what reaches it; Ray, vLLM and torch serve as well."""
    assert any("TransferQueue" in process for process in flowrl_run.listening.seen.values()), "somebody looked"
    assert flowrl_run.listening.reachable() == {}


def test_what_a_person_sees(flowrl_run: Run) -> None:
    for phase in ("starting Ray", "loading the model", "loading vLLM", "first weight sync", "rollout", "update"):
        assert phase in flowrl_run.output
    assert "step 4/4" in flowrl_run.output
    assert "ETA" in flowrl_run.output
    assert str(flowrl_run.run_dir / "logs") in flowrl_run.output
    assert "RecipeTaskRunner" not in flowrl_run.output, "Ray's chatter belongs into the log"


def test_its_checkpoint_can_be_evaluated(flowrl_run: Run, tmp_path: Path) -> None:
    settings = ["suite=countdown", "n=2", "problems=8", "temperature=1.0", f"out={tmp_path}"]
    command = [sys.executable, "-m", "recipe.flowrl", "evaluate", f"model={flowrl_run.checkpoint(4)}", *settings]
    done = subprocess.run(
        command, cwd=PROJECT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=300
    )
    assert done.returncode == 0, done.stdout
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["benchmarks"]["countdown"]["problems"] == 8
    assert summary["protocol"]["model"].endswith("global_step_4")


@pytest.fixture(scope="module")
def resumed_run(flowrl_run: Run, launch: Callable[..., Run], tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The same run, killed while it saved step 4 into a disk that truncated it, and started again.

    Continued from step 2, it goes through steps 3 and 4 once more.
    """
    run_dir = tmp_path_factory.mktemp("resumed") / "run"
    shutil.copytree(flowrl_run.run_dir, run_dir)
    (run_dir / "metrics.jsonl").unlink()
    checkpoints = run_dir / "checkpoints"
    os.truncate(checkpoints / "global_step_4" / "actor" / "optim_world_size_1_rank_0.pt", 1000)
    shutil.copytree(checkpoints / "global_step_4", checkpoints / PARTIAL / "global_step_6")
    return launch(*TINY, "trainer.total_training_steps=4", "deterministic=true", run_dir=run_dir)


def test_resume_falls_back_to_the_newest_whole_checkpoint(resumed_run: Run) -> None:
    """And says why, clears away the interrupted save, and replaces the damaged checkpoint when it gets there."""
    assert "optim_world_size_1_rank_0.pt has 1000 bytes instead of" in resumed_run.output
    assert "continuing from global_step_2, the newest whole checkpoint" in resumed_run.output
    assert "was interrupted" in resumed_run.output
    assert sorted(resumed_run.metrics) == [2, 3, 4]  # the validation before training carries the step resumed from
    checkpoints = resumed_run.run_dir / "checkpoints"
    assert sorted(path.name for path in checkpoints.iterdir()) == ["global_step_2", "global_step_4", TRACKER]
    for step in (2, 4):
        assert manifest_problem(resumed_run.checkpoint(step), progress=lambda done, total: None) is None


def test_a_resumed_run_equals_an_uninterrupted_one_to_the_last_bit(flowrl_run: Run, resumed_run: Run) -> None:
    """Metrics but for times, samples, weights, both optimizers, schedules, random states, the order of the data."""
    for step in (3, 4):
        assert _exact(resumed_run.metrics[step]) == _exact(flowrl_run.metrics[step])
    validation = _exact(resumed_run.metrics[2])
    assert validation and validation.items() <= _exact(flowrl_run.metrics[2]).items()
    for name in ("rollouts/3.jsonl", "rollouts/4.jsonl", "validation/4.jsonl"):
        assert _samples(resumed_run.run_dir / name) == _samples(flowrl_run.run_dir / name), name
    values, wanted = _state(resumed_run.checkpoint(4)), _state(flowrl_run.checkpoint(4))
    assert values.keys() == wanted.keys() and len(values) > 100
    for name, want in wanted.items():
        same = (
            np.array_equal(values[name], want) if isinstance(want, np.ndarray | torch.Tensor) else values[name] == want
        )
        assert same, name


def test_a_finished_run_is_left_as_it_is(flowrl_run: Run) -> None:
    """The same command again finds nothing to do and says so."""
    before = (flowrl_run.run_dir / "metrics.jsonl").read_text()
    overrides = [*TINY, "trainer.total_training_steps=4", "deterministic=true"]
    again = finish(start(flowrl_run.run_dir, *overrides), flowrl_run.run_dir)
    assert again.status == 0
    assert "already" in again.output
    assert again.seconds < 60
    assert (flowrl_run.run_dir / "metrics.jsonl").read_text() == before


def test_two_ranks_tensor_parallel_rollout_async_trainer(launch: Callable[..., Run]) -> None:
    """2 FSDP ranks, vLLM over 2, ``colocate_async``, dynamic batches, packed sequences, gradient checkpointing."""
    run = launch(
        *TINY,
        "trainer.n_gpus_per_node=2",
        "actor_rollout_ref.rollout.tensor_model_parallel_size=2",
        "trainer.v1.trainer_mode=colocate_async",
        "actor_rollout_ref.actor.use_dynamic_bsz=true",
        "actor_rollout_ref.actor.ppo_max_token_len_per_gpu=512",
        "actor_rollout_ref.model.enable_gradient_checkpointing=true",
        "actor_rollout_ref.model.use_remove_padding=true",
    )
    assert run.metrics[1]["training/rollout_probs_diff_max"] < 1e-4
    assert max(run.metrics[2][f"actor/self_check/{pair}_mean"] for pair in ("packed", "rollout")) < 1e-4
    assert run.metrics[2]["actor/flowrl/log_partition_grad_norm"] > 0
    actor = {path.name for path in (run.checkpoint(2) / "actor").iterdir()}
    assert {"log_partition.pt", "model_world_size_2_rank_1.pt"} <= actor


def test_lora(launch: Callable[..., Run]) -> None:
    """Adapters and head train; the reference is the actor without its adapter."""
    run = launch(
        *TINY,
        "actor_rollout_ref.model.lora_rank=8",
        "actor_rollout_ref.model.lora_alpha=16",
        "actor_rollout_ref.rollout.load_format=safetensors",
    )
    for step in (1, 2):
        assert run.metrics[step]["training/rollout_probs_diff_max"] < 1e-3
        assert run.metrics[step]["actor/flowrl/log_partition_grad_norm"] > 0


def _exact(metrics: dict[str, float]) -> dict[str, float]:
    """Those of a step that measure neither time nor memory, nor what each launch checks."""
    others = r"time$|timing_|(actor/)?perf/|actor/self_check/|train/(servers|trainer)_idle$"
    return {name: value for name, value in metrics.items() if not re.match(others, name)}


def _samples(file: Path) -> list[str]:
    """Prompts, answers and scores; verl sorts them by a random name of the prompt."""
    samples = [json.loads(line) for line in file.read_text().splitlines()]
    return sorted(json.dumps({name: value for name, value in row.items() if name != "uid"}) for row in samples)


def _state(checkpoint: Path) -> dict[str, Any]:
    """All that training continues from, on one rank: path to a value in the files -> value, of a tensor its shard."""
    files = sorted([*checkpoint.glob("actor/*.pt"), checkpoint / "data.pt"])
    content = {path.name: torch.load(path, weights_only=False) for path in files}
    assert len(content) == 5
    leaves, _ = tree_flatten_with_path(tree_map_only(DTensor, DTensor.to_local, content))
    return {keystr(path): value for path, value in leaves}
