"""A tiny model directory and a batch of sequences, for tests of the engine. Imports neither verl nor Ray."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from pathlib import Path

import torch
from tokenizers.pre_tokenizers import ByteLevel
from torch import Tensor
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
TEMPERATURE = 0.8


@dataclass(frozen=True)
class Sequences:
    """One tensor a sequence. All but ``prompts`` have the length of the response."""

    prompts: list[Tensor]
    responses: list[Tensor]
    response_mask: list[Tensor]
    old_log_probs: list[Tensor]
    ref_log_prob: list[Tensor]
    advantages: list[Tensor]

    def __len__(self) -> int:
        return len(self.prompts)

    def __getitem__(self, rows: slice) -> Sequences:
        return type(self)(*(getattr(self, field.name)[rows] for field in fields(self)))


PRESETS = (
    *("cispo", "dppo_kl", "dppo_tv", "dr_grpo", "dro", "gmpo", "grpo_kl_matched", "gspo"),
    *("reinforce_plus_plus_baseline", "sapo"),
)
"""Algorithms whose losses are verl's, in the engine's tests."""

FAMILIES = ("qwen2", "llama", "pointwise")


def make_model(directory: Path, family: str) -> Path:
    """Write a random model of about 30,000 parameters and its byte-level tokenizer.

    ``family``: qwen2; llama, with tied embeddings; pointwise, a qwen2 whose attention adds nothing, so that a token's
    state depends on that token alone.
    """
    directory.mkdir(parents=True)
    alphabet = [*sorted(ByteLevel.alphabet()), *SPECIAL_TOKENS]
    (directory / "vocab.json").write_text(json.dumps({token: index for index, token in enumerate(alphabet)}))
    (directory / "merges.txt").write_text("#version: 0.2\n")
    (directory / "config.json").write_text(json.dumps({"model_type": "qwen2"}))
    tokenizer = AutoTokenizer.from_pretrained(directory)
    tokenizer.eos_token, tokenizer.pad_token = "<|im_end|>", "<|endoftext|>"
    tokenizer.save_pretrained(directory)

    config_class, model_class = (
        (LlamaConfig, LlamaForCausalLM) if family == "llama" else (Qwen2Config, Qwen2ForCausalLM)
    )
    config = config_class(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        initializer_range=0.1,
        tie_word_embeddings=family == "llama",
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
    )
    with torch.random.fork_rng():
        torch.manual_seed(5)
        model = model_class(config)
    if family == "pointwise":
        for layer in model.model.layers:
            torch.nn.init.zeros_(layer.self_attn.o_proj.weight)
    model.save_pretrained(directory)
    return directory


def make_sequences(rows: int, vocabulary: int, seed: int = 0) -> Sequences:
    """Random prompts of 1 to 9 tokens and responses of 1 to 12.

    The old policy lies so near to the model (see :func:`recenter`) that some importance weights are clipped and some
    aren't. One response is masked throughout, and some have holes as those of a tool call.
    """
    generator = torch.Generator().manual_seed(seed)

    def integers(low: int, high: int, size: int) -> Tensor:
        return torch.randint(low, high, (size,), generator=generator)

    prompts = [integers(0, vocabulary, length) for length in integers(1, 10, rows).tolist()]
    responses = [integers(0, vocabulary, length) for length in integers(1, 13, rows).tolist()]
    prompts[1], responses[2] = prompts[1][:1], responses[2][:1]
    mask = [torch.ones(len(response), dtype=torch.int64) for response in responses]
    mask[3].zero_()
    for row in range(4, rows, 5):
        mask[row][: len(mask[row]) // 2] = 0
    for row in range(6, rows, 5):
        mask[row][len(mask[row]) // 3 : 2 * len(mask[row]) // 3] = 0
    reward = torch.randn(rows, generator=generator)
    noise = [[torch.randn(len(r), generator=generator) for r in responses] for _ in range(2)]
    return Sequences(
        prompts=prompts,
        responses=responses,
        response_mask=mask,
        old_log_probs=[0.1 * values for values in noise[0]],
        ref_log_prob=[0.3 * values for values in noise[1]],
        advantages=[value * row_mask for value, row_mask in zip(reward, mask, strict=True)],
    )


def recenter(sequences: Sequences, log_probs: list[Tensor]) -> Sequences:
    """``sequences`` with the model's ``log_probs`` added to the log-probs of the old and of the reference policy."""
    shifted = {
        name: [noise + row.float() for noise, row in zip(getattr(sequences, name), log_probs, strict=True)]
        for name in ("old_log_probs", "ref_log_prob")
    }
    unchanged = {field.name: getattr(sequences, field.name) for field in fields(sequences) if field.name not in shifted}
    return Sequences(**unchanged, **shifted)
