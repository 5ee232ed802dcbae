"""The paths of a run's models: what is left for what, and what is refused, by the model's configuration."""

import json
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf
from published_configs import PUBLISHED

from recipe.flowrl.common.errors import UserError
from recipe.flowrl.preflight.compose import compose_run
from recipe.flowrl.preflight.paths import settle_paths

MODEL, ACTOR = "actor_rollout_ref.model", "actor_rollout_ref.actor"
ATTENTION = f"{MODEL}.override_config.attn_implementation"


def run_on(directory: Path, name: str, *overrides: str, attention: str | None = "sdpa") -> DictConfig:
    directory.mkdir(exist_ok=True)
    (directory / "config.json").write_text(json.dumps(PUBLISHED[name]))
    given = [f"+{ATTENTION}={attention}"] if attention else []
    return compose_run(["experiment=math_7b", "cluster=1x8", f"{MODEL}.path={directory}", *given, *overrides])


def options(config: DictConfig) -> dict[str, Any]:
    names = (ATTENTION, f"{MODEL}.use_remove_padding", f"{MODEL}.use_fused_kernels")
    return {name.rpartition(".")[2]: OmegaConf.select(config, name) for name in names}


RIGHT = {"attn_implementation": "sdpa", "use_remove_padding": True, "use_fused_kernels": True}


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("Qwen2.5-7B", {}),
        ("Qwen3-30B-A3B", {}),
        ("Phi-4-mini-instruct", {}),
        ("gemma-2-2b", {"attn_implementation": "eager", "use_fused_kernels": False}),
        ("granite-3.3-8b", {"use_fused_kernels": False}),
        ("gpt-oss-20b, dequantised", {"attn_implementation": "eager", "use_remove_padding": False}),
        ("Qwen3.5-4B, the language model alone", {"use_remove_padding": False}),
    ],
)
def test_a_wrong_path_is_left_and_the_run_says_so(name: str, changes: dict[str, Any], tmp_path: Path) -> None:
    config = run_on(tmp_path / "model", name)
    said = settle_paths(config)
    assert options(config) == RIGHT | changes
    assert len(said) == len(changes) and all("\n" not in line for line in said)
    for option, value in changes.items():
        assert any(f"{option}={value}: " in line and PUBLISHED[name]["model_type"] in line for line in said)
    for option in ("use_remove_padding", "use_fused_kernels"):  # the engine has a copy of them
        assert OmegaConf.select(config, f"{ACTOR}.{option}") == OmegaConf.select(config, f"{MODEL}.{option}")


def test_flash_attention_stays_where_the_family_has_it(tmp_path: Path) -> None:
    """Its softcap is the kernel's, which no CPU can try."""
    config = run_on(tmp_path / "model", "gemma-2-2b", attention="flash_attention_2")
    settle_paths(config)
    assert options(config)["attn_implementation"] == "flash_attention_2"
    config = run_on(tmp_path / "model", "gpt-oss-20b, dequantised", attention="flash_attention_2")
    said = settle_paths(config)
    assert options(config)["attn_implementation"] == "eager"
    assert "GptOssForCausalLM doesn't support flash_attention_2" in said[0]


def test_sequence_parallelism_is_refused_where_it_would_be_wrong(tmp_path: Path) -> None:
    option = f"{ACTOR}.ulysses_sequence_parallel_size"
    for name in ("Qwen3.5-4B, the language model alone", "gpt-oss-20b, dequantised"):
        config = run_on(tmp_path / "model", name, f"{option}=2", attention="flash_attention_2")
        with pytest.raises(UserError, match=f"{option}=2.*set it to 1"):
            settle_paths(config)


def test_a_family_whose_padded_sequences_are_wrong_is_refused(tmp_path: Path) -> None:
    config = run_on(tmp_path / "model", "Qwen2.5-7B")
    (tmp_path / "model" / "config.json").write_text(json.dumps({"model_type": "roberta", "is_decoder": True}))
    with pytest.raises(UserError, match=f"{MODEL}.path: padded sequences of roberta don't come out right"):
        settle_paths(config)


def test_an_override_of_the_models_configuration_counts(tmp_path: Path) -> None:
    config = run_on(tmp_path / "model", "granite-3.3-8b", f"+{MODEL}.override_config.logits_scaling=1.0")
    assert settle_paths(config) == [] and options(config) == RIGHT


@pytest.mark.parametrize("name", ["Qwen3-30B-A3B", "Moonlight-16B-A3B", "granite-4.0-h-tiny"])
def test_adapters_of_experts_are_refused_with_layers_that_can_have_some(name: str, tmp_path: Path) -> None:
    """PEFT adapts the experts' three-dimensional weights as well, and no exported adapter says so."""
    lora = f"{MODEL}.lora_rank=8"
    with pytest.raises(UserError, match=f"{MODEL}.target_modules=all-linear: LoRA on .*(experts|Experts)") as refused:
        settle_paths(run_on(tmp_path / "model", name, lora))
    layers = str(refused.value).rpartition("set it to ")[2]
    assert "o_proj" in layers
    settle_paths(run_on(tmp_path / "model", name, lora, f"{MODEL}.target_modules={layers}"))
    assert settle_paths(run_on(tmp_path / "model", "Qwen2.5-7B", lora)) == []


def test_adapters_that_vllm_wants_in_parts_are_refused(tmp_path: Path) -> None:
    """transformers has gate and up of GLM-4 in one layer; vLLM's worker would fail at the first sync."""
    lora = f"{MODEL}.lora_rank=8"
    with pytest.raises(UserError, match="LoRA on glm4: vLLM's Glm4ForCausalLM wants .*gate_up_proj has one: set it to"):
        settle_paths(run_on(tmp_path / "model", "GLM-4-9B-0414", lora))
    attention = f"{MODEL}.target_modules=[q_proj,k_proj,v_proj,o_proj]"
    assert settle_paths(run_on(tmp_path / "model", "GLM-4-9B-0414", lora, attention)) == []
    assert settle_paths(run_on(tmp_path / "model", "Phi-4-mini-instruct", lora)) == [], "there vLLM has it whole"


def test_adapters_that_peft_fails_on_are_refused(tmp_path: Path) -> None:
    config = run_on(tmp_path / "model", "Qwen2.5-7B", f"{MODEL}.lora_rank=8", f"{MODEL}.target_modules=[no_such_layer]")
    with pytest.raises(UserError, match="PEFT fails on it .*no_such_layer.*set it to .q_proj,k_proj,v_proj,o_proj"):
        settle_paths(config)


def test_a_critic_has_paths_of_its_own(tmp_path: Path) -> None:
    config = run_on(tmp_path / "model", "Qwen3.5-4B, the language model alone", "algo=ppo")
    said = settle_paths(config)
    assert config.critic.model.use_remove_padding is False
    assert sum("use_remove_padding=False" in line for line in said) == 2


def test_a_model_that_cannot_be_tried_is_told(tmp_path: Path) -> None:
    config = run_on(tmp_path / "model", "Qwen2.5-7B")
    (tmp_path / "model" / "config.json").write_text(json.dumps({"model_type": "somebodys_own"}))
    (line,) = settle_paths(config)
    assert "can't be tried beforehand" in line and options(config) == RIGHT


def test_a_model_on_the_hub_is_left_to_the_run() -> None:
    config = compose_run(["experiment=math_7b", "cluster=1x8"])
    before = OmegaConf.to_container(config)
    assert settle_paths(config) == [] and OmegaConf.to_container(config) == before
