"""The trainer's side of a run's self-check, healthy and with real faults."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from typing import Any
from unittest import mock

import expected
import torch
import torch.distributed as dist
from flash_attention import flash_attention
from gpu_scenarios import BFLOAT16, FUSED, LORA, OFFLOAD, own_forwards, worker_of
from transformers import AttentionInterface, AttentionMaskInterface, Gemma2Config, Gemma2ForCausalLM
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from verl_ext import patches
from verl_ext.log_prob_variants import LogProbs, log_prob_variants

TEMPERATURE = 0.8
PACKED = {"model": {"use_remove_padding": True}}


def answers(inputs: Any) -> list[tuple[list[int], list[int]]]:
    """Eight a rank, of prompts and responses as the engine's other tests have them."""
    rows = list(zip(inputs.sequences.prompts, inputs.sequences.responses, strict=True))[: 8 * inputs.ranks]
    return [(prompt.tolist(), response.tolist()) for prompt, response in rows]


def _found(inputs: Any, family: str = "qwen2", **sections: Any) -> list[LogProbs]:
    """What every rank that speaks found, as a run's driver gets it."""
    with own_forwards(Gemma2ForCausalLM):
        worker = worker_of("grpo", inputs.directory / family, **sections)
        one = log_prob_variants(worker, answers(inputs), TEMPERATURE)
    ranks: list[Any] = [None] * inputs.ranks
    dist.all_gather_object(ranks, one)
    return [asdict(found) for found in ranks if found is not None]


def _leaky(module: Any, query: Any, key: Any, value: Any, attention_mask: Any, **kwargs: Any) -> Any:
    """A causal attention that knows of no borders between packed sequences."""
    return sdpa_attention_forward(module, query, key, value, None, is_causal=True, **kwargs)


def _no_mask(*args: Any, **kwargs: Any) -> None:
    return None


@contextmanager
def _blind_to_softcaps() -> Iterator[None]:
    with mock.patch.object(patches, "_beyond_the_product", lambda policy: None):
        yield


def _gemma2(inputs: Any) -> None:
    """Its logits go through a softcap that bites."""
    path = inputs.directory / "gemma2"
    if dist.get_rank() == 0 and not path.exists():
        torch.manual_seed(3)
        config = Gemma2Config(
            vocab_size=expected.load(inputs.qwen2).config.vocab_size,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=8,
            max_position_embeddings=64,
            initializer_range=0.3,
            final_logit_softcapping=2.0,
        )
        Gemma2ForCausalLM(config).save_pretrained(path)
        for file in inputs.qwen2.glob("*token*"):
            (path / file.name).write_bytes(file.read_bytes())
        for name in ("vocab.json", "merges.txt"):
            if (inputs.qwen2 / name).exists():
                (path / name).write_bytes((inputs.qwen2 / name).read_bytes())
    dist.barrier()


def self_check(inputs: Any) -> dict[str, Any]:
    """Case -> what the ranks found."""
    AttentionInterface.register("leaky", _leaky)
    AttentionMaskInterface.register("leaky", _no_mask)
    _gemma2(inputs)
    packed_and_fused = {"model": {**PACKED["model"], **FUSED}}
    flash = {"use_remove_padding": True, "override_config": {"attn_implementation": "flash_attention_2"}}
    cases: dict[str, dict[str, Any]] = {
        "plain": {"model": {"use_remove_padding": False}},
        "packed and fused": packed_and_fused,
        "bfloat16": {**packed_and_fused, "engine": BFLOAT16},
        "offloaded": {**packed_and_fused, "engine": OFFLOAD},
        "lora": {"model": {**PACKED["model"], **LORA}},
        "ulysses": {"model": flash, "engine": {"ulysses_sequence_parallel_size": inputs.ranks}},
        "leaky attention": {"model": {**PACKED["model"], "override_config": {"attn_implementation": "leaky"}}},
        "lost softcap": {"family": "gemma2", "model": {"use_remove_padding": False, **FUSED}},
    }
    around: dict[str, Callable] = {"ulysses": flash_attention, "lost softcap": _blind_to_softcaps}
    results = {}
    for name, sections in cases.items():
        with around.get(name, nullcontext)():
            results[name] = _found(inputs, **sections)
    return results
