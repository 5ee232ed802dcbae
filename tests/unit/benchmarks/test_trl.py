"""The benchmark beside TRL: what it makes of what it has seen. The runs themselves are no test's."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.steps import PHASES, Step, steps_between
from benchmarks.trl import compare
from benchmarks.trl.compare import OURS, TRL
from benchmarks.trl.workloads import WORKLOADS
from benchmarks.usage import Usage, watched


def test_processor_time_is_interpolated_between_looks() -> None:
    usage = Usage(times=[10.0, 12.0, 14.0], seconds=[1.0, 3.0, 9.0], memory=[5, 7, 6])
    assert usage.seconds_between(11.0, 13.0) == pytest.approx(4.0)
    assert usage.seconds_between(0.0, 20.0) == pytest.approx(8.0)
    assert (usage.peak_between(10.0, 11.0), usage.peak_between(11.0, 14.0)) == (5, 7)


def test_what_is_watched_are_processes_below_this_one() -> None:
    code = "import time\nx = bytearray(50_000_000)\nwhile time.process_time() < 2: pass"
    with watched() as usage:
        subprocess.run([sys.executable, "-c", code], check=True)
    assert usage.seconds[-1] > 1.0
    assert max(usage.memory) > 50_000_000


def test_a_step_goes_from_its_beginning_to_that_of_the_next() -> None:
    usage = Usage(times=[0.0, 10.0, 20.0, 30.0], seconds=[0.0, 5.0, 20.0, 30.0], memory=[1, 3, 2, 1])
    told = [{"tokens": tokens, "reward": 0.5, "phases": {}} for tokens in (100, 200)]
    steps = steps_between([0.0, 10.0, 30.0], told, usage)
    assert [(s.seconds, s.cpu_seconds, s.tokens, s.peak_bytes) for s in steps] == [(10, 5, 100, 3), (20, 25, 200, 3)]


@pytest.mark.parametrize("name", WORKLOADS)
def test_both_are_asked_for_the_same(name: str) -> None:
    workload = WORKLOADS[name]
    config, grpo = workload.config(), workload.of_trl(Path("results"))["grpo"]
    actor, rollout = config.actor_rollout_ref.actor, config.actor_rollout_ref.rollout
    assert grpo["num_generations"] == rollout.n
    assert grpo["max_completion_length"] == config.data.max_response_length
    assert grpo["temperature"] == rollout.temperature
    assert grpo["learning_rate"] == actor.optim.lr
    assert grpo["beta"] == actor.kl_loss_coef and actor.use_kl_loss
    sequences = config.data.train_batch_size * rollout.n
    assert grpo["per_device_train_batch_size"] * grpo["steps_per_generation"] == sequences
    updates = grpo["steps_per_generation"] // grpo["gradient_accumulation_steps"]
    assert updates == config.data.train_batch_size // actor.ppo_mini_batch_size == workload.updates
    assert grpo["max_steps"] == updates * config.trainer.total_training_steps


def test_the_ratio_is_of_steps_after_the_first() -> None:
    def steps(*seconds: float) -> list[Step]:
        phases = dict.fromkeys(PHASES, 0.0)
        return [Step(s, 2 * s, 100, 1, 0.5, phases) for s in seconds]

    summary = compare.compared({OURS: [steps(99, 2, 4)], TRL: [steps(99, 1, 1)]})
    assert summary["ratio"]["median"] == 3
    assert summary[OURS]["seconds"]["median"] == 3
    assert summary[TRL]["tokens_per_second"]["median"] == 100
