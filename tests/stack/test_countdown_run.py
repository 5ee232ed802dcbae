"""``experiment=countdown_cpu`` through the real stack: verl's V1 trainer, Ray, vLLM, FSDP2."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import TINY, Run, finish, start
from omegaconf import OmegaConf


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


def test_what_a_person_sees(flowrl_run: Run) -> None:
    for phase in ("starting Ray", "loading the model", "loading vLLM", "first weight sync", "rollout", "update"):
        assert phase in flowrl_run.output
    assert "step 4/4" in flowrl_run.output
    assert "ETA" in flowrl_run.output
    assert str(flowrl_run.run_dir / "logs") in flowrl_run.output
    assert "RecipeTaskRunner" not in flowrl_run.output, "Ray's chatter belongs into the log"


def test_resume_continues_where_the_run_stopped(flowrl_run: Run, launch: Callable[..., Run], tmp_path: Path) -> None:
    """Steps 3 and 4 after a resume from step 2 equal those of the run that wasn't interrupted."""
    interrupted = tmp_path / "run"
    shutil.copytree(flowrl_run.run_dir, interrupted)
    shutil.rmtree(interrupted / "checkpoints" / "global_step_4")
    (interrupted / "checkpoints" / "latest_checkpointed_iteration.txt").write_text("2")
    (interrupted / "metrics.jsonl").unlink()
    resumed = launch(*TINY, "trainer.total_training_steps=4", "deterministic=true", run_dir=interrupted)

    assert sorted(resumed.metrics) == [2, 3, 4]  # the validation before training carries the step resumed from
    for step in (3, 4):
        assert _prompts(interrupted, step) == _prompts(flowrl_run.run_dir, step), "data order"
        for name in ("actor/loss", "actor/grad_norm", "actor/flowrl/log_z", "actor/flowrl/log_partition_grad_norm"):
            assert resumed.metrics[step][name] == pytest.approx(flowrl_run.metrics[step][name], rel=1e-3), (step, name)
        assert resumed.metrics[step]["actor/lr"] == flowrl_run.metrics[step]["actor/lr"]
    assert _parameters(resumed.checkpoint(4)) == pytest.approx(_parameters(flowrl_run.checkpoint(4)), rel=1e-3)


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


def _prompts(run_dir: Path, step: int) -> list[str]:
    lines = (run_dir / "rollouts" / f"{step}.jsonl").read_text().splitlines()
    return sorted({json.loads(line)["input"] for line in lines})


def _parameters(checkpoint: Path) -> list[float]:
    """Norms of the policy's parameters, of its optimizer's moments and of the head's parameters."""
    actor = checkpoint / "actor"
    policy = torch.load(actor / "model_world_size_1_rank_0.pt", weights_only=False)
    optimizer = torch.load(actor / "optim_world_size_1_rank_0.pt", weights_only=False)
    head = torch.load(actor / "log_partition.pt", weights_only=True)
    moments = [state["exp_avg_sq"] for _, state in sorted(optimizer["state"].items())]
    tensors = [*policy.values(), *moments, *head["model"].values()]
    return [float((t.to_local() if hasattr(t, "to_local") else t).float().norm()) for t in tensors]
