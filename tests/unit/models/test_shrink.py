"""Published models made small: nothing of full size is ever built, and what makes the family stays."""

from typing import Any

import pytest
import torch
from published_configs import PUBLISHED

from recipe.flowrl.common.errors import UserError
from recipe.flowrl.models.shrink import build, config_of, positions_of, shrunk

SETTINGS: dict[str, Any] = {"vocab_size": 64, "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2}
KEPT = (
    "rope_theta attn_logit_softcapping final_logit_softcapping logits_scaling residual_multiplier embedding_multiplier "
    "attention_multiplier partial_rotary_factor routed_scaling_factor swiglu_limit tie_word_embeddings norm_topk_prob "
    "hidden_act hidden_activation rms_norm_eps sliding_window use_sliding_window multi_query alibi"
).split()


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_model_is_small_and_computes(name: str) -> None:
    large = config_of(PUBLISHED[name]).to_dict()
    small = shrunk(PUBLISHED[name], **SETTINGS)
    model = build(small)
    assert model.num_parameters() < 500_000
    for setting in KEPT:
        assert small.get(setting) == large.get(setting), setting
    with torch.no_grad():
        assert model(torch.arange(3, 20).unsqueeze(0)).logits.isfinite().all()


def layer_kinds(config: dict[str, Any]) -> set:
    return set(config.get("layer_types") or [None])


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_kind_of_layer_is_kept(name: str) -> None:
    assert layer_kinds(shrunk(PUBLISHED[name])) == layer_kinds(config_of(PUBLISHED[name]).to_dict())


def test_layers_without_positions_are_a_kind() -> None:
    assert sorted(shrunk(PUBLISHED["SmolLM3-3B"])["no_rope_layers"]) == [0, 1]


def test_experts_stay_a_choice() -> None:
    for name in ("Qwen3-30B-A3B", "Moonlight-16B-A3B", "gpt-oss-20b, dequantised", "granite-4.0-h-tiny"):
        small = config_of(shrunk(PUBLISHED[name]))
        assert 1 < small.num_experts_per_tok < small.num_local_experts <= 4


def test_lists_over_rotary_frequencies_get_the_small_heads_length() -> None:
    rotary = shrunk(PUBLISHED["Phi-4-mini-instruct"])["rope_parameters"]
    assert len(rotary["short_factor"]) == len(rotary["long_factor"]) == 32 * 3 // 4 // 2
    assert rotary["long_factor"][0] == 32.0 and rotary["long_factor"] == sorted(rotary["long_factor"])


def test_a_nested_language_model_is_shrunk_as_well() -> None:
    nested = {"model_type": "gemma3", "text_config": {**PUBLISHED["gemma-3-1b-it"], "hidden_size": 2560}}
    text = shrunk(nested)["text_config"]
    assert text["hidden_size"] == 64 and text["num_hidden_layers"] == len(text["layer_types"]) == 2
    assert positions_of(nested) == 32768


def test_a_short_context_is_lengthened_where_that_is_asked_for() -> None:
    short = {**PUBLISHED["OLMo-2-1124-7B"], "max_position_embeddings": 1024}
    assert positions_of(shrunk(short)) == 1024
    assert positions_of(shrunk(short, least_positions=2112)) == 2112
    assert positions_of(shrunk(PUBLISHED["Llama-3.1-8B"], least_positions=2112)) == 131072


def test_what_is_not_known_as_a_size_is_refused_before_it_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: set[str] = set()
    small = {**shrunk(PUBLISHED["Qwen2.5-7B"]), "intermediate_size": 1_000_000}
    monkeypatch.setattr(torch.nn.Linear, "reset_parameters", lambda layer: seen.add(layer.weight.device.type))
    with pytest.raises(UserError, match="qwen2 can't be made small: it keeps 384M parameters"):
        build(small)
    assert seen == {"meta"}


def test_an_unknown_family_is_refused_in_one_line() -> None:
    with pytest.raises(UserError, match="can't be built: .*no_such_model") as refused:
        shrunk({"model_type": "no_such_model"})
    assert "\n" not in str(refused.value)


@pytest.mark.slow("a minute: every family of transformers")
def test_the_families_of_transformers() -> None:
    """No family is built at full size: each is small, or refused."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    small, refused = [], []
    for family in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        try:
            small.append(build(shrunk({"model_type": family}, **SETTINGS)).num_parameters())
        except UserError:
            refused.append(family)
    assert len(small) >= 140 and max(small) < 10_000_000, refused
