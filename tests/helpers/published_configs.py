"""The config.json of published models, as far as their sizes and kinds go; written from their public model cards."""

from __future__ import annotations

from typing import Any

_LONGROPE = [1.0 + index / 48 for index in range(48)]

PUBLISHED: dict[str, dict[str, Any]] = {
    "Llama-3.1-8B": {
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 4096, "intermediate_size": 14336,
        "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256,
        "max_position_embeddings": 131072, "bos_token_id": 128000, "eos_token_id": 128001, "rope_theta": 500000.0,
        "rope_scaling": {"factor": 8.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
                         "original_max_position_embeddings": 8192, "rope_type": "llama3"},
        "tie_word_embeddings": False,
    },
    "Qwen2.5-7B": {
        "model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"], "hidden_size": 3584, "intermediate_size": 18944,
        "num_hidden_layers": 28, "num_attention_heads": 28, "num_key_value_heads": 4, "vocab_size": 152064,
        "max_position_embeddings": 131072, "max_window_layers": 28, "sliding_window": 131072,
        "use_sliding_window": False, "rope_theta": 1000000.0, "tie_word_embeddings": False,
    },
    "Qwen3-0.6B": {
        "model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"], "hidden_size": 1024, "intermediate_size": 3072,
        "num_hidden_layers": 28, "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128,
        "vocab_size": 151936, "max_position_embeddings": 40960, "max_window_layers": 28, "tie_word_embeddings": True,
        "rope_theta": 1000000,
    },
    "Qwen3-30B-A3B": {
        "model_type": "qwen3_moe", "architectures": ["Qwen3MoeForCausalLM"], "hidden_size": 2048,
        "intermediate_size": 6144, "moe_intermediate_size": 768, "num_experts": 128, "num_experts_per_tok": 8,
        "num_hidden_layers": 48, "num_attention_heads": 32, "num_key_value_heads": 4, "head_dim": 128,
        "vocab_size": 151936, "max_position_embeddings": 40960, "decoder_sparse_step": 1, "mlp_only_layers": [],
        "norm_topk_prob": True, "tie_word_embeddings": False, "rope_theta": 1000000.0,
    },
    "Mistral-7B-v0.1": {
        "model_type": "mistral", "architectures": ["MistralForCausalLM"], "hidden_size": 4096,
        "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
        "vocab_size": 32000, "max_position_embeddings": 32768, "sliding_window": 4096, "rope_theta": 10000.0,
        "tie_word_embeddings": False,
    },
    "gemma-2-2b": {
        "model_type": "gemma2", "architectures": ["Gemma2ForCausalLM"], "hidden_size": 2304, "intermediate_size": 9216,
        "num_hidden_layers": 26, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256,
        "vocab_size": 256000, "max_position_embeddings": 8192, "sliding_window": 4096, "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0, "query_pre_attn_scalar": 256, "hidden_activation": "gelu_pytorch_tanh",
    },
    "gemma-3-1b-it": {
        "model_type": "gemma3_text", "architectures": ["Gemma3ForCausalLM"], "hidden_size": 1152,
        "intermediate_size": 6912, "num_hidden_layers": 26, "num_attention_heads": 4, "num_key_value_heads": 1,
        "head_dim": 256, "vocab_size": 262144, "max_position_embeddings": 32768, "sliding_window": 512,
        "sliding_window_pattern": 6, "query_pre_attn_scalar": 256, "rope_local_base_freq": 10000,
        "rope_theta": 1000000,
    },
    "Phi-4-mini-instruct": {
        "model_type": "phi3", "architectures": ["Phi3ForCausalLM"], "hidden_size": 3072, "intermediate_size": 8192,
        "num_hidden_layers": 32, "num_attention_heads": 24, "num_key_value_heads": 8, "vocab_size": 200064,
        "max_position_embeddings": 131072, "original_max_position_embeddings": 4096, "partial_rotary_factor": 0.75,
        "pad_token_id": 199999, "eos_token_id": 199999, "bos_token_id": 199999, "sliding_window": 262144,
        "rope_scaling": {"type": "longrope", "short_factor": _LONGROPE, "long_factor": [32 * f for f in _LONGROPE]},
        "tie_word_embeddings": True,
    },
    "phi-4": {
        "model_type": "phi3", "architectures": ["Phi3ForCausalLM"], "hidden_size": 5120, "intermediate_size": 17920,
        "num_hidden_layers": 40, "num_attention_heads": 40, "num_key_value_heads": 10, "vocab_size": 100352,
        "max_position_embeddings": 16384, "pad_token_id": 100349, "eos_token_id": 100265, "bos_token_id": 100257,
        "rope_theta": 250000, "tie_word_embeddings": False,
    },
    "OLMo-2-1124-7B": {
        "model_type": "olmo2", "architectures": ["Olmo2ForCausalLM"], "hidden_size": 4096, "intermediate_size": 11008,
        "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 32, "vocab_size": 100352,
        "max_position_embeddings": 4096, "pad_token_id": 100277, "eos_token_id": 100257, "rope_theta": 500000,
        "tie_word_embeddings": False,
    },
    "GLM-4-9B-0414": {
        "model_type": "glm4", "architectures": ["Glm4ForCausalLM"], "hidden_size": 4096, "intermediate_size": 13696,
        "num_hidden_layers": 40, "num_attention_heads": 32, "num_key_value_heads": 2, "head_dim": 128,
        "vocab_size": 151552, "max_position_embeddings": 32768, "partial_rotary_factor": 0.5, "pad_token_id": 151329,
        "eos_token_id": [151329, 151336, 151338], "tie_word_embeddings": False,
    },
    "SmolLM3-3B": {
        "model_type": "smollm3", "architectures": ["SmolLM3ForCausalLM"], "hidden_size": 2048,
        "intermediate_size": 11008, "num_hidden_layers": 36, "num_attention_heads": 16, "num_key_value_heads": 4,
        "vocab_size": 128256, "max_position_embeddings": 65536, "no_rope_layers": [1, 1, 1, 0] * 9,
        "layer_types": ["full_attention"] * 36, "use_sliding_window": False, "pad_token_id": 128004,
        "bos_token_id": 128000, "eos_token_id": 128012, "rope_theta": 5000000.0,
    },
    "granite-3.3-8b": {
        "model_type": "granite", "architectures": ["GraniteForCausalLM"], "hidden_size": 4096,
        "intermediate_size": 12800, "num_hidden_layers": 40, "num_attention_heads": 32, "num_key_value_heads": 8,
        "vocab_size": 49159, "max_position_embeddings": 131072, "attention_multiplier": 0.0078125,
        "embedding_multiplier": 12.0, "logits_scaling": 16.0, "residual_multiplier": 0.22, "rope_theta": 10000000.0,
        "tie_word_embeddings": True,
    },
    "granite-4.0-h-tiny": {
        "model_type": "granitemoehybrid", "architectures": ["GraniteMoeHybridForCausalLM"], "hidden_size": 1536,
        "intermediate_size": 512, "shared_intermediate_size": 1024, "num_hidden_layers": 40, "num_attention_heads": 12,
        "num_key_value_heads": 4, "num_local_experts": 64, "num_experts_per_tok": 6, "vocab_size": 100352,
        "max_position_embeddings": 131072, "mamba_d_state": 128, "mamba_n_heads": 48, "mamba_d_head": 64,
        "mamba_expand": 2, "mamba_n_groups": 1, "mamba_chunk_size": 256, "position_embedding_type": "nope",
        "layer_types": (["mamba"] * 5 + ["attention"] + ["mamba"] * 4) * 4, "logits_scaling": 6.0,
        "embedding_multiplier": 12.0, "residual_multiplier": 0.22, "attention_multiplier": 0.0078125,
    },
    "Moonlight-16B-A3B": {
        "model_type": "deepseek_v3", "architectures": ["DeepseekV3ForCausalLM"], "hidden_size": 2048,
        "intermediate_size": 11264, "moe_intermediate_size": 1408, "n_routed_experts": 64, "n_shared_experts": 2,
        "num_experts_per_tok": 6, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1, "kv_lora_rank": 512,
        "q_lora_rank": None, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128,
        "num_hidden_layers": 27, "num_attention_heads": 16, "num_key_value_heads": 16, "vocab_size": 163840,
        "max_position_embeddings": 8192, "routed_scaling_factor": 2.446, "scoring_func": "sigmoid",
        "topk_method": "noaux_tc", "num_nextn_predict_layers": 0, "tie_word_embeddings": False,
    },
    "gpt-oss-20b, dequantised": {
        "model_type": "gpt_oss", "architectures": ["GptOssForCausalLM"], "hidden_size": 2880,
        "intermediate_size": 2880, "num_local_experts": 32, "num_experts_per_tok": 4, "num_hidden_layers": 24,
        "num_attention_heads": 64, "num_key_value_heads": 8, "head_dim": 64, "vocab_size": 201088,
        "max_position_embeddings": 131072, "sliding_window": 128, "swiglu_limit": 7.0,
        "layer_types": ["sliding_attention", "full_attention"] * 12, "pad_token_id": 199999, "eos_token_id": 200002,
        "rope_theta": 150000, "rope_scaling": {
            "rope_type": "yarn", "factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": False,
            "original_max_position_embeddings": 4096}, "tie_word_embeddings": False,
    },
    "Qwen3.5-4B, the language model alone": {
        "model_type": "qwen3_5_text", "architectures": ["Qwen3_5ForCausalLM"], "hidden_size": 2560,
        "intermediate_size": 9216, "num_hidden_layers": 32, "num_attention_heads": 16, "num_key_value_heads": 4,
        "head_dim": 256, "vocab_size": 248320, "max_position_embeddings": 262144, "full_attention_interval": 4,
        "layer_types": (["linear_attention"] * 3 + ["full_attention"]) * 8, "linear_key_head_dim": 128,
        "linear_value_head_dim": 128, "linear_num_key_heads": 16, "linear_num_value_heads": 32,
        "linear_conv_kernel_dim": 4, "rope_parameters": {
            "mrope_interleaved": True, "mrope_section": [11, 11, 10], "rope_type": "default", "rope_theta": 10000000,
            "partial_rotary_factor": 0.25}, "tie_word_embeddings": True,
    },
    "Falcon-7B": {
        "model_type": "falcon", "architectures": ["FalconForCausalLM"], "hidden_size": 4544, "num_hidden_layers": 32,
        "num_attention_heads": 71, "multi_query": True, "parallel_attn": True, "new_decoder_architecture": False,
        "vocab_size": 65024, "alibi": False, "bias": False,
    },
    "bloom-560m": {
        "model_type": "bloom", "architectures": ["BloomForCausalLM"], "hidden_size": 1024, "n_layer": 24, "n_head": 16,
        "vocab_size": 250880,
    },
}  # fmt: skip
"""Trained here; the last of each is a family of an older kind."""

ENGINE_IN_CI = ("Qwen3-30B-A3B", "gemma-2-2b", "gpt-oss-20b, dequantised", "Qwen3.5-4B, the language model alone")
"""Families of ``tests/engine/test_families.py`` in every run, one of each kind: experts, softcaps, sinks under eager
attention, a state that runs through the sequence."""
ENGINE_OTHERS = (
    "Llama-3.1-8B",
    "Qwen2.5-7B",
    "Qwen3-0.6B",
    "Mistral-7B-v0.1",
    "gemma-3-1b-it",
    "Phi-4-mini-instruct",
    "phi-4",
    "OLMo-2-1124-7B",
    "GLM-4-9B-0414",
    "SmolLM3-3B",
    "granite-3.3-8b",
    "Moonlight-16B-A3B",
    "granite-4.0-h-tiny",
)
"""The other families of ``tests/engine/test_families.py``; minutes."""

_VISION = {"hidden_size": 1152, "num_hidden_layers": 27, "num_attention_heads": 16}

REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "gemma-3-4b-it": (
        {"model_type": "gemma3", "architectures": ["Gemma3ForConditionalGeneration"], "image_token_index": 262144,
         "text_config": {**PUBLISHED["gemma-3-1b-it"], "hidden_size": 2560}, "vision_config": _VISION},
        "multimodal model (it has vision_config)",
    ),
    "Qwen2.5-VL-7B": (
        {**PUBLISHED["Qwen2.5-7B"], "model_type": "qwen2_5_vl", "vision_config": {"depth": 32, "hidden_size": 1280}},
        "multimodal model (it has vision_config)",
    ),
    "Qwen3.5-4B": (
        {"model_type": "qwen3_5", "text_config": PUBLISHED["Qwen3.5-4B, the language model alone"],
         "vision_config": {"depth": 24, "hidden_size": 1024}},
        "multimodal model (it has vision_config)",
    ),
    "Qwen2.5-Omni": (
        {"model_type": "qwen2_5_omni", "thinker_config": {"audio_config": {"d_model": 1280}}, "talker_config": {}},
        "multimodal model (it has thinker_config.audio_config)",
    ),
    "gpt-oss-20b": (
        {**PUBLISHED["gpt-oss-20b, dequantised"], "quantization_config": {"quant_method": "mxfp4"}},
        "quantised weights (mxfp4)",
    ),
    "DeepSeek-V3": (
        {**PUBLISHED["Moonlight-16B-A3B"], "num_hidden_layers": 61,
         "quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}},
        "quantised weights (fp8)",
    ),
    "Qwen2.5-7B-Instruct-AWQ": (
        {**PUBLISHED["Qwen2.5-7B"], "quantization_config": {"quant_method": "awq", "bits": 4}},
        "quantised weights (awq)",
    ),
    "flan-t5-base": ({"model_type": "t5", "is_encoder_decoder": True, "d_model": 768}, "encoder-decoder"),
}  # fmt: skip
"""Refused, with a part of the message."""
