"""The plan: sizes agree with published ones; what doesn't fit names a setting that helps."""

import functools
import json
from pathlib import Path

import pytest
from omegaconf import DictConfig

from recipe.flowrl.compose import compose_run
from recipe.flowrl.errors import UserError
from recipe.flowrl.plan.__main__ import main
from recipe.flowrl.plan.duration import Assumptions, plan_duration
from recipe.flowrl.plan.gpus import GPUS, named
from recipe.flowrl.plan.memory import plan_memory
from recipe.flowrl.plan.model import ModelShape, load_architecture, shape_of
from recipe.flowrl.plan.report import report

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
    assert main(["experiment=math_32b", "cluster=1x8", "gpu=h100_80gb"]) == 1
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
        (["experiment=math_7b"], "say which GPU"),
        (["experiment=math_7b", "gpu=h100"], "did you mean 'h100_80gb'"),
        (["experiment=math_8b", "gpu=h100_80gb"], "math_7b"),
        (["experiment=math_7b", "cluster=1x8", "actor_rollout_ref.model.path=a/b", "gpu=h100_80gb"], "config.json"),
    ],
)
def test_bad_input_gets_one_line(arguments: list[str], message: str, capsys) -> None:
    assert main(arguments) == 2
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


def test_a_critic_is_said_not_to_be_counted() -> None:
    with_critic = report(config_of("math_7b", "1x8", "algorithm.adv_estimator=gae"), "h100_80gb")[0]
    assert any("critic" in line for line in with_critic)
    assert not any("critic" in line for line in report(config_of("math_7b", "1x8"), "h100_80gb")[0])


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
