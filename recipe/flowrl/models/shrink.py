"""A small model of the same architecture: its config.json with every size reduced, whatever the family calls it.

Works on the complete configuration, family's defaults included: published files leave those out (Gemma's heads of 256).
What isn't known as a size stays, so :func:`build` counts on the meta device before anything is made.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from recipe.flowrl.common.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

HIDDEN, HEADS, HEAD, FEED_FORWARD = 64, 2, 32, 128
"""Heads of 32: the smallest that vLLM's CPU attention has in common with GPUs."""
LAYERS, MOST_LAYERS = 2, 8
"""At least, and at most where layers differ in kind: one of each."""
EXPERTS, CHOSEN_EXPERTS = 4, 2
_MOST_PARAMETERS = 5_000_000
"""Of a small model, its embeddings apart: beyond it, something that isn't known as a size has kept its own."""

_HEAD_COUNTS = ("num_attention_heads", "n_head", "n_heads", "num_heads", "decoder_attention_heads", "attention_heads")
_SIZES = (
    (
        HIDDEN,
        "hidden_size n_embd d_model emb_dim embedding_dim embedding_size word_embed_proj_dim lru_width d_embed "
        "attention_hidden_size input_embedding_size output_embedding_size",
    ),
    (
        FEED_FORWARD,
        "intermediate_size n_inner ffn_dim decoder_ffn_dim ffn_hidden_size dff moe_intermediate_size "
        "shared_expert_intermediate_size shared_intermediate_size moe_shared_expert_intermediate_size "
        "intermediate_size_mlp expert_ffn_hidden_size feed_forward_size d_inner mamba_d_ssm",
    ),
    (HEADS, " ".join(_HEAD_COUNTS)),
    (EXPERTS, "num_experts num_local_experts n_routed_experts moe_num_experts"),
    (CHOSEN_EXPERTS, "num_experts_per_tok moe_topk moe_k top_k_experts"),
    (
        HEAD,
        "head_dim global_head_dim attention_head_size attention_head_dim kv_channels d_head qk_nope_head_dim "
        "v_head_dim index_head_dim query_pre_attn_scalar",
    ),
    (16, "q_lora_rank o_lora_rank hidden_size_per_layer_input laurel_rank mamba_dt_rank time_step_rank"),
    (16, "mamba_d_state state_size ssm_state_size linear_key_head_dim linear_value_head_dim"),
    (4, "linear_num_value_heads"),
    (2, "linear_num_key_heads n_group index_n_heads"),
    (1, "topk_group first_k_dense_replace num_dense_layers moe_layer_start_index n_shared_experts"),
    (0, "num_nextn_predict_layers mtp_num_hidden_layers num_kv_shared_layers"),
)
"""The size in the small model, and the names of the fields that have it there, if they have more in the large one."""
_SMALL = {name: size for size, names in _SIZES for name in names.split()}
_KEY_VALUE_HEADS = ("num_key_value_heads", "num_kv_heads", "num_query_groups", "num_global_key_value_heads")
_LAYER_COUNTS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers")
_LAYER_INDICES = ("mlp_only_layers", "full_attn_idxs", "hybrid_layer_ids", "attn_layer_indices")
VOCABULARIES = ("vocab_size", "vocab_size_per_layer_input")
_POSITIONS = ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "max_sequence_length")
_ROTARY_LISTS = ("short_factor", "long_factor")
_TOKENS = ("pad_token_id", "eos_token_id", "bos_token_id")
_OF_THE_WEIGHTS = ("quantization_config", "torch_dtype", "dtype", "architectures", "_name_or_path")


def config_of(architecture: Mapping[str, Any]) -> "PreTrainedConfig":
    """The configuration object of a config.json.

    Raises:
        UserError: transformers doesn't know the architecture, or doesn't take its values.
    """
    from transformers import AutoConfig

    try:
        return AutoConfig.for_model(**architecture)
    except Exception as error:
        # Each family has checks of its own, with errors of its own; the file is somebody else's.
        raise UserError(f"the model's architecture can't be built: {_line(error)}") from error


def shrunk(architecture: Mapping[str, Any], least_positions: int = 0, **settings: Any) -> dict[str, Any]:
    """The config.json of a small model of the same architecture: two layers or one of each kind, one size for all.

    Args:
        architecture: content of a config.json.
        least_positions: of its context, in tokens, whatever the large one's is.
        **settings: values that the small one is to have, where the architecture has such a field; token ids always.

    Raises:
        UserError: transformers can't read it.
    """
    small = _shrunk(config_of(architecture).to_dict(), settings)
    longer = {name: max(value, least_positions) for name, value in small.items() if name in _POSITIONS and value}
    kept = {name: architecture[name] for name in ("architectures",) if name in architecture}
    return small | longer | kept


def _shrunk(whole: dict[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    layers = next((whole[name] for name in _LAYER_COUNTS if isinstance(whole.get(name), int)), 0)
    kept = _kept_layers(whole, layers)
    small: dict[str, Any] = {}
    for name, value in whole.items():
        if name in _OF_THE_WEIGHTS:
            continue
        if isinstance(value, dict) and name.endswith("_config"):
            small[name] = _shrunk(value, settings)
        elif name in _LAYER_COUNTS:
            small[name] = len(kept)
        elif name in _LAYER_INDICES and isinstance(value, list):
            small[name] = [new for new, old in enumerate(kept) if old in value]
        elif isinstance(value, list) and len(value) == layers > 1:
            values = [value[index] for index in kept]
            small[name] = [_reduced(name, one) for one in values]
        elif name in _KEY_VALUE_HEADS and value:
            heads = next((whole[head] for head in _HEAD_COUNTS if whole.get(head)), value)
            small[name] = HEADS if value == heads else 1
        else:
            small[name] = _reduced(name, value)
    _fit_rotary(whole, small)
    _fit_state_space(whole, small)
    small |= {name: value for name, value in settings.items() if small.get(name) is not None or name in _TOKENS}
    if small.get("vocab_size_per_layer_input"):
        small["vocab_size_per_layer_input"] = small["vocab_size"]
    return small


def _reduced(name: str, value: Any) -> Any:
    """The smaller value of a size; anything else as it is."""
    is_size = isinstance(value, int) and not isinstance(value, bool)
    return min(value, _SMALL[name]) if is_size and name in _SMALL else value


def _kept_layers(whole: Mapping[str, Any], layers: int) -> list[int]:
    """Indices of the layers to keep: the first of each kind, and at least two."""
    by_layer = [value for value in whole.values() if isinstance(value, list) and len(value) == layers > 1]
    kinds = list(zip(*by_layer, strict=True)) if by_layer else [()] * layers
    first = [index for index in range(layers) if repr(kinds[index]) not in map(repr, kinds[:index])]
    others = [index for index in range(layers) if index not in first]
    missing = max(0, min(LAYERS, layers) - len(first))
    return sorted(first[:MOST_LAYERS] + others[:missing])


def _fit_rotary(whole: Mapping[str, Any], small: dict[str, Any]) -> None:
    """Lists over the rotary frequencies get the length of the small head's."""
    if "qk_rope_head_dim" in small:  # multi-head latent attention: only a part of a head turns
        small["qk_rope_head_dim"] = min(small["qk_rope_head_dim"], HEAD)
        for name, value in {
            "head_dim": small["qk_rope_head_dim"],
            "qk_head_dim": HEAD + small["qk_rope_head_dim"],
        }.items():
            if whole.get(name):
                small[name] = value
    for name in ("rope_parameters", "rope_scaling"):
        if isinstance(whole.get(name), dict):
            small[name] = _fitted(whole[name], whole)


def _fitted(rotary: Mapping[str, Any], whole: Mapping[str, Any]) -> dict[str, Any]:
    part = rotary.get("partial_rotary_factor") or whole.get("partial_rotary_factor") or 1.0
    frequencies = int(HEAD * part) // 2
    fitted: dict[str, Any] = {}
    for name, value in rotary.items():
        if isinstance(value, dict):
            fitted[name] = _fitted(value, whole)
        elif name in _ROTARY_LISTS and isinstance(value, list) and value:
            fitted[name] = [value[index * len(value) // frequencies] for index in range(frequencies)]
        elif name == "mrope_section" and isinstance(value, list) and sum(value):
            parts = [part * frequencies // sum(value) for part in value]
            fitted[name] = [parts[0] + frequencies - sum(parts), *parts[1:]]
        else:
            fitted[name] = value
    return fitted


def _fit_state_space(whole: Mapping[str, Any], small: dict[str, Any]) -> None:
    """Mamba's heads have to make up its inner width."""
    inner = small.get("mamba_d_ssm") or HIDDEN * (whole.get("mamba_expand") or whole.get("expand") or 2)
    for heads, size in (
        ("mamba_n_heads", "mamba_d_head"),
        ("mamba_num_heads", "mamba_head_dim"),
        ("n_mamba_heads", "mamba_headdim"),
        ("num_heads", "head_dim") if "state_size" in whole else ("", ""),
    ):
        if isinstance(small.get(heads), int) and isinstance(small.get(size), int):
            small[heads], small[size] = inner // HEAD, HEAD
    for name in ("mamba_n_groups", "n_groups", "mamba_ngroups"):
        if isinstance(small.get(name), int):
            small[name] = 1


def build(architecture: Mapping[str, Any], **settings: Any) -> "PreTrainedModel":
    """The model of a configuration that :func:`shrunk` returned, with random weights.

    Args:
        architecture: of the small model.
        **settings: for ``from_config``: ``attn_implementation``, ``dtype``.

    Raises:
        UserError: transformers can't build it, or it isn't small.
    """
    import torch
    from transformers import AutoModelForCausalLM

    config = config_of(architecture)
    try:
        with torch.device("meta"):
            outline = AutoModelForCausalLM.from_config(config)
        outer = {id(p): p.numel() for p in _embeddings(outline)}
        size = sum(p.numel() for p in outline.parameters()) - sum(outer.values())
    except Exception as error:  # of any family
        raise UserError(f"a small model of {config.model_type} can't be built: {_line(error)}") from error
    if size > _MOST_PARAMETERS:
        raise UserError(
            f"a model of {config.model_type} can't be made small: it keeps {size / 1e6:,.0f}M parameters, in sizes "
            "that recipe/flowrl/models/shrink.py doesn't know"
        )
    try:
        return AutoModelForCausalLM.from_config(config_of(architecture), **settings)
    except Exception as error:
        raise UserError(f"a small model of {config.model_type} can't be built: {_line(error)}") from error


def _embeddings(model: "PreTrainedModel") -> list[Any]:
    modules = (model.get_input_embeddings(), model.get_output_embeddings())
    return [parameter for module in modules if module is not None for parameter in module.parameters()]


def _line(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 160 else f"{text[:160]}…"


def positions_of(architecture: Mapping[str, Any]) -> int:
    """The context that a model takes, in tokens; 0 where its config.json tells none."""
    found = [text_of(architecture)[name] for name in _POSITIONS if isinstance(text_of(architecture).get(name), int)]
    return max(found, default=0)


def text_of(architecture: Mapping[str, Any]) -> Mapping[str, Any]:
    """The part of a config.json that describes the language model, which some families nest."""
    nested = architecture.get("text_config")
    return {**architecture, **nested} if isinstance(nested, dict) else architecture
