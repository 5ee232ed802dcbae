"""Which steps need the log-probs of the policy before them. Gradients, metrics: ``tests/engine/test_on_policy.py``."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from recipe.flowrl.preflight.compose import compose_run

ON_POLICY = ["experiment=countdown_cpu", "actor_rollout_ref.actor.ppo_mini_batch_size=32"]
ROWS = 32 * 8


class Verl:
    """In the place of verl's trainer."""

    def _compute_old_log_prob(self, batch: Any, metrics: dict) -> str:
        return "verl's pass"

    def _compute_advantage(self, batch: Any, metrics: dict) -> Any:
        return self.config.algorithm.rollout_correction


@pytest.fixture
def passed(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Whether a step of so many rows has verl's pass, and the rollout correction that its advantages see."""
    from verl_ext import trainer
    from verl_ext.on_policy import uses_old_log_probs

    monkeypatch.setattr(trainer, "_for_workers", lambda batch, *_: batch)

    class Trainer(trainer.ObservedTrainerMixin, Verl):
        def __init__(self, config: Any) -> None:
            self.config, self.observer = config, SimpleNamespace(phase=lambda name: None)
            self.old_log_probs_used, self.self_check = uses_old_log_probs(config), None

    def get(*overrides: str, rows: int = ROWS) -> tuple[bool, Any]:
        stage = Trainer(compose_run([*ON_POLICY, *overrides]))
        batch = SimpleNamespace(keys=[str(row) for row in range(rows)])
        told = stage._compute_old_log_prob(batch, {}) == "verl's pass"
        seen = stage._compute_advantage(batch, {})
        assert stage.config.algorithm.rollout_correction is not None
        return told, seen

    return get


@pytest.mark.parametrize("algo", ["flowrl", "grpo", "gspo", "dapo"])
def test_a_step_of_one_update_has_no_pass(passed: Any, algo: str) -> None:
    assert passed(f"algo={algo}") == (False, None)


@pytest.mark.parametrize(
    ("override", "rows"),
    [
        ("actor_rollout_ref.actor.ppo_mini_batch_size=16", ROWS),
        ("actor_rollout_ref.actor.ppo_epochs=2", ROWS),
        ("algorithm.use_kl_in_reward=false", 2 * ROWS),  # the option is the default; an agent left more rows
        ("algorithm.use_kl_in_reward=true", ROWS),
        ("algorithm.rollout_correction.rollout_is=token", ROWS),
        ("algorithm.rollout_correction.bypass_mode=true", ROWS),
        ("algorithm.adv_estimator=optimal_token_baseline", ROWS),
        ("trainer.v1.trainer_mode=separate_async", ROWS),
    ],
)
def test_what_needs_verls_pass(passed: Any, override: str, rows: int) -> None:
    had, correction = passed("algo=grpo", override, rows=rows)
    assert had and correction is not None


def test_metrics_of_a_step_with_verls_pass_are_left_alone() -> None:
    from verl_ext.on_policy import metrics_of_the_update

    metrics = {"actor/loss": 1.0}
    assert metrics_of_the_update(metrics) == {} and metrics == {"actor/loss": 1.0}
