"""The plan: sizes agree with published ones; what doesn't fit names a setting that helps."""

import dataclasses
import functools
import json
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf

from recipe.flowrl.__main__ import main
from recipe.flowrl.common.errors import UserError
from recipe.flowrl.common.gpus import GPUS, named
from recipe.flowrl.plan.architecture import ModelShape, load_architecture, shape_of
from recipe.flowrl.plan.duration import Assumptions, plan_duration
from recipe.flowrl.plan.memory import plan_memory
from recipe.flowrl.plan.text import report
from recipe.flowrl.preflight.compose import compose_run

H100 = GPUS["h100_80gb"]
SEVEN, THIRTY_TWO = "Qwen/Qwen2.5-7B", "Qwen/Qwen2.5-32B"


@functools.cache
def config_of(experiment: str, cluster: str, *overrides: str) -> DictConfig:
    return compose_run([f"experiment={experiment}", f"cluster={cluster}", *overrides])


@functools.cache
def _shape(name: str, partition: bool) -> ModelShape:
    return shape_of(load_architecture(name), config_of("math_7b", "1x8").flowrl if partition else None)


def shape(name: str, config: DictConfig) -> ModelShape:
    return _shape(name, config.flowrl is not None)


@pytest.fixture(scope="module")
def math_7b() -> DictConfig:
    return config_of("math_7b", "1x8")


def test_parameters_are_those_of_the_published_models(math_7b: DictConfig) -> None:
    seven, large = shape(SEVEN, math_7b), shape(THIRTY_TWO, math_7b)
    assert seven.parameters == 7_615_616_512 and large.parameters == 32_763_876_352
    assert round(seven.head_parameters / 1e6, 1) == 25.7 and round(large.head_parameters / 1e6, 1) == 52.5
    assert shape_of(load_architecture(SEVEN), None).head_parameters == 0


@pytest.mark.parametrize(("experiment", "cluster"), [("math_7b", "1x8"), ("math_32b", "4x8"), ("code_7b", "1x8")])
def test_the_papers_runs_fit_where_the_paper_ran_them(experiment: str, cluster: str) -> None:
    lines, wrong = report(config_of(experiment, cluster), "h800_80gb")
    assert not wrong and any("about" in line for line in lines)


def test_what_does_not_fit_names_a_setting_that_helps(math_7b: DictConfig) -> None:
    assert main(["plan", "experiment=math_32b", "cluster=1x8", "gpu=h100_80gb"]) == 1
    config = config_of("math_32b", "1x8", "actor_rollout_ref.rollout.tensor_model_parallel_size=4")
    _, wrong = report(config, "h100_80gb")
    assert any("optimizer_offload=true" in line for line in wrong) and any("more GPUs" in line for line in wrong)
    offload = "actor_rollout_ref.actor.fsdp_config"
    helped = config_of(
        "math_32b",
        "1x8",
        "actor_rollout_ref.rollout.tensor_model_parallel_size=4",
        f"{offload}.optimizer_offload=true",
        f"{offload}.param_offload=true",
    )
    assert not any(line.startswith("rollout") for line in report(helped, "h100_80gb")[1])


def test_settings_change_the_bytes_that_they_are_for(math_7b: DictConfig) -> None:
    size = shape(SEVEN, math_7b)
    base = plan_memory(math_7b, size, H100)

    def planned(*overrides: str):
        return plan_memory(config_of("math_7b", "1x8", *overrides), size, H100)

    unfused = planned("actor_rollout_ref.model.use_fused_kernels=false")
    logits = [plan.update["at the loss"]["logits"] for plan in (unfused, base)]
    assert logits[0] / 12 == 20 * logits[1] / 20, "10,240 tokens instead of chunks of 512, fewer bytes each"
    assert unfused.worst_moment == "at the loss" and base.worst_moment == "in the first block's backward"
    kept = planned("actor_rollout_ref.model.enable_gradient_checkpointing=false")
    activations = [plan.update["in the last block's backward"]["activations of blocks"] for plan in (kept, base)]
    assert activations[0] == 28 * activations[1]
    offloaded = planned("actor_rollout_ref.actor.fsdp_config.optimizer_offload=true")
    assert "optimizer" not in offloaded.resident and offloaded.phases["update"] == base.phases["update"]
    assert offloaded.phases["rollout"] < base.phases["rollout"] and offloaded.host["optimizer"] > 60e9
    split = planned("actor_rollout_ref.rollout.tensor_model_parallel_size=2")
    assert split.rollout["vLLM weights"] == base.rollout["vLLM weights"] / 2
    assert split.longest_sequences > 2 * base.longest_sequences


def test_time_follows_work_and_gpus(math_7b: DictConfig) -> None:
    size, assumed = shape(SEVEN, math_7b), Assumptions()

    def planned(config: DictConfig):
        return plan_duration(config, size, H100, plan_memory(config, size, H100), assumed)

    one, four = (
        planned(math_7b),
        planned(config_of("math_7b", "4x8", "actor_rollout_ref.rollout.tensor_model_parallel_size=1")),
    )
    assert one.phases["update"] == pytest.approx(4 * four.phases["update"])
    assert one.phases["rollout"] > 1.5 * four.phases["rollout"], "each waits for its longest response"
    assert one.phases["update"] == pytest.approx(4 * one.phases["reference"])
    plain = planned(config_of("math_7b", "1x8", "algo=grpo", "actor_rollout_ref.actor.use_kl_loss=false"))
    assert "reference" not in plain.phases and one.tokens == plain.tokens
    # 2 FLOPs for a parameter and token, 7 times forward in all.
    assert one.flops == pytest.approx(7 * 2 * 7.07e9 * one.tokens, rel=0.1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["experiment=math_7b"], "gpu= is missing"),
        (["experiment=math_7b", "gpu=h100"], "did you mean 'h100_80gb'"),
        (["experiment=math_8b", "gpu=h100_80gb"], "math_7b"),
        (["experiment=math_7b", "cluster=1x8", "actor_rollout_ref.model.path=a/b", "gpu=h100_80gb"], "config.json"),
    ],
)
def test_bad_input_gets_one_line(arguments: list[str], message: str, capsys) -> None:
    assert main(["plan", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_a_model_directory_is_read(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no directory"):
        load_architecture(str(tmp_path / "none"))
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match="valid JSON"):
        load_architecture(str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "no_such_model"}))
    with pytest.raises(UserError, match="can't be built"):
        shape_of(load_architecture(str(tmp_path)), None)


def test_a_critic_is_counted() -> None:
    """It has the policy's size without the vocabulary's head, and takes what the policy takes, without a rollout."""
    policy = _shape(SEVEN, False)
    assert policy.parameters - policy.critic.parameters == 152_064 * 3584 - 3584 - 1
    lines, wrong = report(config_of("math_7b", "1x8", "algo=ppo"), "h100_80gb")
    assert not wrong and any(line.startswith("critic's update: ") for line in lines)
    assert "critic's update" in next(line for line in lines if line.startswith("a step: "))
    assert not any("critic" in line for line in report(config_of("math_7b", "1x8"), "h100_80gb")[0])
    off = "critic.fsdp.param_offload=false", "critic.fsdp.optimizer_offload=false"
    wrong = report(config_of("math_7b", "1x8", "algo=ppo", *off), "h100_80gb")[1]
    assert len(wrong) == 1 and wrong[0].startswith("rollout") and "critic.fsdp.optimizer_offload=true" in wrong[0]
    plans = [
        plan_memory(config_of("math_7b", "1x8", "algo=ppo", *overrides), policy, H100, policy.critic)
        for overrides in ((), off)
    ]
    moved = sum(plans[0].host.values()) - sum(plans[1].host.values())
    assert moved == 12 * policy.critic.parameters
    assert plans[1].phases["rollout"] - plans[0].phases["rollout"] == pytest.approx(moved / 8)
    assert plans[1].phases["critic's update"] == pytest.approx(plans[0].phases["critic's update"])


@pytest.mark.parametrize("experiment", ["math_7b", "code_7b", "math_32b"])
@pytest.mark.parametrize("gpu", ["a100_80gb", "h100_80gb", "h200_141gb", "a100_40gb"])
def test_more_concurrency_and_more_cache_are_not_slower(experiment: str, gpu: str) -> None:
    cluster = "4x8" if experiment == "math_32b" else "1x8"
    rollout = "actor_rollout_ref.rollout"

    base = config_of(experiment, cluster)
    size = shape(base.actor_rollout_ref.model.path, base)

    def seconds(option: str, value: float) -> float:
        config = base.copy()
        OmegaConf.update(config, f"{rollout}.{option}", value)
        memory = plan_memory(config, size, GPUS[gpu])
        return plan_duration(config, size, GPUS[gpu], memory, Assumptions()).phases["rollout"]

    at_once = [seconds("max_num_seqs", count) for count in (1, 16, 64, 200, 256, 300, 512, 1024)]
    assert at_once == sorted(at_once, reverse=True) and at_once[0] > at_once[2]
    cache = [seconds("gpu_memory_utilization", share) for share in (0.5, 0.6, 0.7, 0.8, 0.9)]
    assert cache == sorted(cache, reverse=True)


def test_a_rollout_takes_what_a_simulation_of_it_takes(math_7b: DictConfig) -> None:
    """Step by step: a place is taken over when its response ends; a step reads weights and the caches in it."""
    size, assumed = shape(SEVEN, math_7b), Assumptions()
    memory = plan_memory(math_7b, size, H100)
    planned = plan_duration(math_7b, size, H100, memory, assumed).phases["rollout"]
    power = 1 / assumed.response_share - 1
    lengths = [round(8192 * (1 - ((index + 0.5) / 512) ** (1 / power))) for index in range(512)]
    assert sum(lengths) / 512 == pytest.approx(0.3 * 8192, rel=0.01)
    waiting = [lengths[index * 197 % 512] for index in range(512)]  # in no order
    places: list[list[int]] = []
    token, bandwidth, seconds = 2 * 2 * 28 * 512, 3.35e12 * assumed.decoding_share, 0.0
    room = memory.longest_sequences * 10240
    while waiting or places:
        while waiting and sum(done + 200 for _, done in places) + 200 + 2 * len(places) < room and len(places) < 512:
            places.append([waiting.pop(), 0])
        held = sum(200 + done for _, done in places)
        seconds += (2 * size.parameters + held * token) / bandwidth
        places = [[length, done + 1] for length, done in places if done + 1 < length]
    assert planned == pytest.approx(seconds, rel=0.1)


@pytest.mark.parametrize(
    ("experiment", "cluster"), [("math_7b", "1x8"), ("math_32b", "4x8"), ("code_7b", "1x8"), ("math_7b", "4x8")]
)
def test_a_clusters_settings_are_what_plan_finds_best(experiment: str, cluster: str) -> None:
    """No other value of what plan can tell is faster and leaves a twentieth of the memory."""
    rollout = "actor_rollout_ref.rollout"

    base = config_of(experiment, cluster)
    size = shape(base.actor_rollout_ref.model.path, base)

    def planned(option: str | None = None, value: Any = None) -> tuple[float, float]:
        config = base.copy()
        if option is not None:
            OmegaConf.update(config, option, value, force_add=True)
        memory = plan_memory(config, size, H100)
        return plan_duration(config, size, H100, memory, Assumptions()).step_s, max(memory.phases.values())

    seconds, needed = planned()
    assert needed < 0.95 * H100.memory
    for option, value in (
        (f"{rollout}.gpu_memory_utilization", 0.6),
        (f"{rollout}.gpu_memory_utilization", 0.8),
        (f"{rollout}.max_num_seqs", 256),
        (f"{rollout}.max_num_seqs", 1024),
        (f"{rollout}.max_num_batched_tokens", 8192),
        ("actor_rollout_ref.model.override_config.attn_implementation", "sdpa"),
    ):
        other, takes = planned(option, value)
        assert other > 0.99 * seconds or takes > 0.95 * H100.memory, (option, value)


def test_host_memory_is_what_loading_and_the_reference_take(math_7b: DictConfig) -> None:
    config = config_of("math_32b", "4x8")
    size = shape(THIRTY_TWO, config)
    memory = plan_memory(config, size, H100)
    assert sum(memory.host.values()) == 2 * size.parameters / 4, "bfloat16, a quarter on each node"
    assert memory.host_peak == (4 + 2 / 4) * size.parameters, "rank 0 holds the whole state dict beside it"
    full = config_of("math_32b", "4x8", "actor_rollout_ref.ref.fsdp_config.model_dtype=fp32")
    assert plan_memory(full, size, H100).host_peak == 5 * size.parameters
    plain = config_of("math_32b", "4x8", "algo=grpo", "actor_rollout_ref.actor.use_kl_loss=false")
    assert plan_memory(plain, size, H100).host == {}
    offloaded = config_of("math_7b", "1x8", "actor_rollout_ref.actor.fsdp_config.optimizer_offload=true")
    seven = shape(SEVEN, math_7b)
    assert plan_memory(offloaded, seven, H100).host_peak == 2 * seven.parameters + 8 * (
        seven.parameters + seven.head_parameters
    ), "training takes more than loading"
    tied = dataclasses.replace(seven, tied=True)
    assert plan_memory(math_7b, tied, H100).host_peak > 8 * 4 * seven.parameters, "each rank reads all of it"


def test_log_probs_need_room_for_their_own_micro_batches(math_7b: DictConfig) -> None:
    size = shape(SEVEN, math_7b)
    options = "actor_rollout_ref.rollout.log_prob_max_token_len_per_gpu", "actor_rollout_ref.model.use_fused_kernels"
    plain = plan_memory(config_of("math_7b", "1x8", f"{options[1]}=false"), size, H100)
    assert plain.log_probs["logits"] == 8 * 32768 * size.vocabulary
    config = config_of("math_7b", "1x8", f"{options[0]}=300000")
    wrong = report(config, "h100_80gb")[1]
    assert len(wrong) == 1 and wrong[0].startswith("log-probs") and options[0] in wrong[0]


def test_sdpa_costs_the_square_of_a_packed_micro_batch(math_7b: DictConfig) -> None:
    size = shape(SEVEN, math_7b)
    memory = plan_memory(math_7b, size, H100)

    def seconds(*overrides: str) -> dict[str, float]:
        return plan_duration(config_of("math_7b", "1x8", *overrides), size, H100, memory, Assumptions()).phases

    sdpa = "+actor_rollout_ref.model.override_config.attn_implementation=sdpa"
    flash, masked = seconds(), seconds(sdpa)
    assert masked["rollout"] == flash["rollout"] and 1.2 < masked["update"] / flash["update"] < 1.3
    assert masked["reference"] > 1.5 * flash["reference"], "in micro-batches three times as long"
    padded = seconds(sdpa, "actor_rollout_ref.model.use_remove_padding=false")
    assert padded["update"] == flash["update"]


@pytest.mark.parametrize(
    ("device", "name"),
    [
        ("NVIDIA H100 80GB HBM3", "h100_80gb"),
        ("NVIDIA A100-SXM4-40GB", "a100_40gb"),
        ("NVIDIA A100-SXM4-80GB", "a100_80gb"),
        ("NVIDIA H200", "h200_141gb"),
        ("NVIDIA L40S", "l40s_48gb"),
        ("NVIDIA T4", None),
    ],
)
def test_gpus_are_known_by_the_names_that_cuda_gives(device: str, name: str | None) -> None:
    assert named(device) == name
