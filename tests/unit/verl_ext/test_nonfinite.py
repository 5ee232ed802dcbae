"""The guard of updates on its own, and the replay of what it keeps; tests/engine has it in a real worker."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from verl.utils import tensordict_utils as tu

from recipe.flowrl.__main__ import main
from recipe.flowrl.config import FlowRLConfig
from recipe.flowrl.run import replay
from recipe.flowrl.worker import flowrl_worker_loss
from verl_ext.faults import NonFiniteError
from verl_ext.nonfinite import UpdateGuard, load_batch

LENGTHS = (3, 5)


def jagged(values: list[torch.Tensor]) -> torch.Tensor:
    return torch.nested.as_nested_tensor(values, layout=torch.jagged)


def micro_batch(bad: float = 0.0) -> tuple[dict[str, torch.Tensor], Any]:
    """Two sequences, prompts of 2 tokens; ``bad`` is added to the reference's log-probs of the second."""
    responses = {
        "advantages": jagged([torch.full((n,), 0.7) for n in LENGTHS]),
        "old_log_probs": jagged([torch.full((n,), -1.0) for n in LENGTHS]),
        "ref_log_prob": jagged([torch.full((n,), -1.1 + extra) for n, extra in zip(LENGTHS, (0, bad), strict=True)]),
        "response_mask": jagged([torch.ones(n, dtype=torch.int64) for n in LENGTHS]),
    }
    tokens = {
        "prompts": jagged([torch.arange(2) for _ in LENGTHS]),
        "responses": jagged([torch.arange(n) for n in LENGTHS]),
        "input_ids": jagged([torch.arange(2 + n) for n in LENGTHS]),
    }
    others = {"dp_size": 1, "global_batch_size": 2, "batch_num_tokens": 8, "messages": [{"role": "user"}] * 2}
    data = tu.get_tensordict({**responses, **tokens}, others)
    outputs = {
        "log_probs": jagged([torch.full((2 + n,), -0.9) for n in LENGTHS]).requires_grad_(),
        "log_z": torch.tensor([0.1, 0.2], requires_grad=True),
    }
    return outputs, data


LOSS = partial(flowrl_worker_loss, FlowRLConfig())


def update(guard: UpdateGuard, bad: float, step: int) -> tuple[float, bool]:
    """A micro-batch forward and backward; the gradient's norm, and whether the guard counted it as skipped."""
    outputs, data = micro_batch(bad)
    loss, _ = guard.watch(LOSS)(model_output=outputs, data=data)
    loss.backward()
    norm = outputs["log_probs"].grad.values().norm().item()
    return norm, guard.update_ended(norm, step, rank=0)


def test_a_finite_loss_and_its_gradient_are_exactly_those_of_the_loss_function(tmp_path: Path) -> None:
    (outputs, data), (watched_outputs, _) = micro_batch(), micro_batch()
    loss, metrics = LOSS(model_output=outputs, data=data)
    watched, watched_metrics = UpdateGuard(5, str(tmp_path)).watch(LOSS)(model_output=watched_outputs, data=data)
    loss.backward()
    watched.backward()
    assert torch.equal(loss, watched)
    assert torch.equal(outputs["log_probs"].grad.values(), watched_outputs["log_probs"].grad.values())
    assert metrics.keys() == watched_metrics.keys()


def test_the_limit_counts_updates_in_a_row(tmp_path: Path) -> None:
    guard = UpdateGuard(3, str(tmp_path))
    outcomes = [update(guard, bad, step)[1] for step, bad in enumerate((math.nan, math.inf, 0.0, math.nan, math.nan))]
    assert outcomes == [True, True, False, True, True]
    assert not list(tmp_path.iterdir())
    with pytest.raises(NonFiniteError, match="3 updates in a row, the last in step 9.*step_9_rank_0.pt"):
        update(guard, math.nan, 9)


def test_nothing_is_held_before_the_last_update_of_the_row(tmp_path: Path) -> None:
    guard = UpdateGuard(2, str(tmp_path))
    outputs, data = micro_batch()
    guard.watch(LOSS)(model_output=outputs, data=data)
    assert not guard._micro_batches


def test_a_pass_without_gradient_is_no_update(tmp_path: Path) -> None:
    guard = UpdateGuard(1, str(tmp_path))
    outputs, data = micro_batch(math.nan)
    with torch.no_grad():
        guard.watch(LOSS)(model_output=outputs, data=data)
    assert not guard._micro_batches


def test_a_call_for_logits_passes_through(tmp_path: Path) -> None:
    watched = UpdateGuard(1, str(tmp_path)).watch(lambda student_logits, data: {"kl": student_logits + data})
    assert watched(student_logits=1, data=2) == {"kl": 3}


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """A run that ended in step 4: a good micro-batch and a bad one."""
    guard = UpdateGuard(1, str(tmp_path / "nonfinite"))
    for bad in (0.0, math.nan):
        outputs, data = micro_batch(bad)
        guard.watch(LOSS)(model_output=outputs, data=data)
    with pytest.raises(NonFiniteError):
        guard.update_ended(math.nan, 4, rank=0)
    OmegaConf.save({"flowrl": {"beta": 15.0}}, tmp_path / "config.yaml")
    return tmp_path


def test_replay_finds_the_sequence(run_dir: Path) -> None:
    good, bad = replay.replay(load_batch(run_dir / "nonfinite" / "step_4_rank_0.pt"), LOSS)
    assert good.loss == good.recorded
    assert not good.bad_inputs
    assert not good.bad_gradients
    assert math.isnan(bad.loss)
    assert bad.bad_inputs == {"ref_log_prob": [1]}
    assert bad.bad_gradients == [1]


def test_the_command(run_dir: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["replay", str(run_dir / "nonfinite" / "step_4_rank_0.pt")]) == 0
    said = capsys.readouterr().out
    assert "step 4, rank 0" in said
    assert "ref_log_prob isn't finite in sequences [1]" in said


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda run_dir: (run_dir / "config.yaml").unlink(), "config.yaml doesn't exist"),
        (lambda run_dir: (run_dir / "nonfinite" / "step_4_rank_0.pt").unlink(), "isn't a batch of a run"),
        (lambda run_dir: (run_dir / "nonfinite" / "step_4_rank_0.pt").write_text("x"), "isn't a batch of a run"),
    ],
)
def test_bad_input_to_the_command(run_dir: Path, spoil: Any, words: str, capsys: pytest.CaptureFixture) -> None:
    spoil(run_dir)
    assert main(["replay", str(run_dir / "nonfinite" / "step_4_rank_0.pt")]) == 2
    message = capsys.readouterr().err
    assert words in message
    assert len(message.splitlines()) == 1


def test_verls_own_loss_is_replayed(tmp_path: Path) -> None:
    config = OmegaConf.create(
        {
            "flowrl": None,
            "actor_rollout_ref": {
                "actor": {
                    "_target_": "verl.workers.config.FSDPActorConfig",
                    "strategy": "fsdp2",
                    "rollout_n": 2,
                    "ppo_micro_batch_size_per_gpu": 1,
                }
            },
        }
    )
    loss = replay.loss_of(config)
    guard = UpdateGuard(1, str(tmp_path))
    outputs, data = micro_batch()
    guard.watch(loss)(model_output=outputs, data=data)
    with pytest.raises(NonFiniteError):
        guard.update_ended(math.nan, 1, rank=0)
    (result,) = replay.replay(load_batch(tmp_path / "step_1_rank_0.pt"), loss)
    assert result.loss == result.recorded
