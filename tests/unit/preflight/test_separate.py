"""The asynchronous modes: the preset passes, and what contradicts it is refused in words before anything starts."""

from __future__ import annotations

import pytest
from omegaconf import OmegaConf

from recipe.flowrl.common.errors import UserError
from recipe.flowrl.preflight.batches import check_batches
from recipe.flowrl.preflight.compose import compose_run
from recipe.flowrl.preflight.machine import check_ray_slots
from recipe.flowrl.preflight.separate import CHANNEL, OWN_SOCKETS, check_mode, is_separate, servers_ranks

CPU, GPU = ["experiment=countdown_cpu", "mode=async"], ["experiment=math_7b", "cluster=1x8", "mode=async"]
ROLLOUT = "actor_rollout_ref.rollout"


def test_the_names_are_those_of_the_engine() -> None:
    from verl_ext import weight_stream

    assert (OWN_SOCKETS, CHANNEL) == (weight_stream.BACKEND, weight_stream.__name__)


@pytest.mark.parametrize(("overrides", "backend"), [(CPU, OWN_SOCKETS), (GPU, "nccl")])
def test_the_preset_has_what_verl_asserts(overrides: list[str], backend: str) -> None:
    config = compose_run(overrides)
    check_mode(config)
    check_batches(config)
    check_ray_slots(config)
    updates = config.trainer.v1.separate_async.parameter_sync_step
    assert config.data.train_batch_size == updates * config.actor_rollout_ref.actor.ppo_mini_batch_size
    assert config.actor_rollout_ref.rollout.checkpoint_engine.backend == backend
    assert is_separate(config) and servers_ranks(config) == config.trainer.n_gpus_per_node


def test_ray_counts_the_servers_ranks() -> None:
    two = [*CPU, f"{ROLLOUT}.n_gpus_per_node=2"]
    assert compose_run(two).ray_kwargs.ray_init.num_gpus == 3
    assert compose_run(CPU[:1]).ray_kwargs.ray_init.num_gpus == 1
    with pytest.raises(UserError, match=r"num_cpus=8: 3 rank\(s\) wait .* fewer than 9 slots"):
        check_ray_slots(compose_run([*two, "ray_kwargs.ray_init.num_cpus=8"]))


def test_the_mode_without_the_preset() -> None:
    config = compose_run([*CPU[:1], "trainer.v1.trainer_mode=separate_async"])
    with pytest.raises(UserError, match=r"rollout\.nnodes=0: .* or set mode=async"):
        check_mode(config)


REFUSED = [
    (CPU, "deterministic=true", "deterministic=true doesn't work with trainer.v1.trainer_mode=separate_async"),
    (CPU, "actor_rollout_ref.model.lora_rank=8", "model.lora_rank=8: verl sends no LoRA adapter"),
    (CPU, "actor_rollout_ref.hybrid_engine=true", "sleep mode needs a GPU"),
    (CPU, f"{ROLLOUT}.checkpoint_engine.backend=nccl", "nccl needs GPUs: .* set it to own_sockets"),
    (CPU, f"{ROLLOUT}.checkpoint_engine.backend=naive", "naive takes servers that share .* own_sockets"),
    (GPU, f"{ROLLOUT}.checkpoint_engine.backend=naive", "set it to nccl, or set mode=async"),
    (GPU, f"{ROLLOUT}.checkpoint_engine.custom_backend_module=null", "set it to verl_ext.weight_stream"),
    (CPU, f"{ROLLOUT}.n_gpus_per_node=0", r"rollout\.n_gpus_per_node=0"),
    (CPU, f"{ROLLOUT}.nnodes=2", "own_sockets works on one machine, and this run has 2 nodes"),
    (CPU, "trainer.v1.sampler.max_off_policy_threshold=0", "max_off_policy_threshold: got 0"),
    (CPU, "trainer.v1.sampler.max_off_policy_strategy=keep", "max_off_policy_strategy: got 'keep'"),
    (CPU, "trainer.v1.trainer_mode=sync", "hybrid_engine=false has no effect with trainer.v1.trainer_mode=sync"),
    (CPU, "trainer.v1.separate_async.parameter_sync_step=3", "isn't trainer.v1.separate_async.parameter_sync_step=3"),
    (CPU, f"{ROLLOUT}.tensor_model_parallel_size=2", r"doesn't divide the 1 ranks \(actor_rollout_ref\.rollout"),
    (CPU, "+reward.reward_model.enable=true", "the rollout never pauses"),
    (
        [CPU[0], "trainer.v1.trainer_mode=colocate_async"],
        "deterministic=true",
        "deterministic=true doesn't work with trainer.v1.trainer_mode=colocate_async",
    ),
]


@pytest.mark.parametrize(("run", "override", "message"), REFUSED)
def test_what_contradicts_the_mode(run: list[str], override: str, message: str) -> None:
    config = compose_run([*run, override.removeprefix("+")])
    with pytest.raises(UserError, match=message) as refused:
        check_mode(config)
        check_batches(config)
    assert "\n" not in str(refused.value)


def test_a_mode_that_is_not_there() -> None:
    with pytest.raises(UserError, match="mode"):
        compose_run([*CPU[:1], "mode=asink"])


def test_the_preset_leaves_a_synchronous_run_as_it_is() -> None:
    run, sync = compose_run(CPU[:1]), compose_run([*CPU[:1], "mode=sync"])
    assert OmegaConf.to_container(run) == OmegaConf.to_container(sync)
    check_mode(sync)


def test_what_counts_the_trainers_gpus_only_refuses_it() -> None:
    from recipe.flowrl.plan.text import report
    from recipe.flowrl.run.submit import composed

    with pytest.raises(UserError, match="plan counts the trainer's GPUs only"):
        report(compose_run(GPU), "h100_80gb")
    with pytest.raises(UserError, match="submit counts the trainer's GPUs only"):
        composed(GPU)
