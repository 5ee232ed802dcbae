"""Model families as tiny random models: published configurations made small, with constants that show if dropped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import expected
import tiny
import torch
from published_configs import PUBLISHED
from transformers import AutoTokenizer

from recipe.flowrl.models.shrink import build, shrunk
from recipe.flowrl.models.trial import EAGER, SDPA, Trial, trial_of

EXAGGERATED: dict[str, dict[str, Any]] = {
    "gemma-2-2b": {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0},
    "gemma-3-1b-it": {},
    "granite-3.3-8b": {"logits_scaling": 4.0, "residual_multiplier": 0.5, "attention_multiplier": 0.3},
    "Moonlight-16B-A3B": {"routed_scaling_factor": 2.5},
    "gpt-oss-20b, dequantised": {"swiglu_limit": 1.0},
}
ROWS, WINDOW = 12, 6
OPTIONS = ("padded", "packed", "fused", "checkpointing", "LoRA")
SCALE = 1.2


def architecture_of(name: str) -> dict[str, Any]:
    """Of the published model, with the constants that are exaggerated here."""
    return {**PUBLISHED[name], **EXAGGERATED.get(name, {})}


def paths_of(name: str) -> tuple[str, set[str]]:
    """The attention that is right for a family, and those of ``OPTIONS`` that are."""
    trial: Trial = trial_of(architecture_of(name))
    attention = EAGER if trial.attention(SDPA) else SDPA
    right = {"packed": trial.packed(attention), "fused": trial.fused(), "padded": trial.padded(attention)}
    return attention, {option for option in OPTIONS if not right.get(option)}


def adapted(name: str) -> dict[str, Any]:
    """The layers that a run's adapters are refused or allowed for: all, or attention's where experts can't have any."""
    trial, rank = trial_of(architecture_of(name)), {"lora_rank": 4, "lora_alpha": 8}
    all_layers = trial.adapters(r=4, target_modules="all-linear") is None
    return rank | {"target_modules": "all-linear" if all_layers else trial.attention_layers}


def make(directory: Path, name: str) -> Path:
    """Write a model of the family, its tokenizer, and sequences whose old and reference policies lie near to it."""
    path = directory / name
    tiny.make_model(path, "qwen2")
    tokenizer = AutoTokenizer.from_pretrained(path)
    ids = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id, "bos_token_id": None}
    sizes = {"vocab_size": len(tokenizer), "sliding_window": WINDOW}
    with torch.random.fork_rng():
        torch.manual_seed(5)
        model = build(shrunk(architecture_of(name), **sizes, **ids), dtype=torch.float32)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim > 1:
                    parameter.normal_(std=SCALE / parameter.shape[-1] ** 0.5)
    for file in path.glob("model*.safetensors"):
        file.unlink()
    model.save_pretrained(path)
    plain = expected.load(path)
    drawn = tiny.make_sequences(rows=ROWS, vocabulary=len(tokenizer), seed=3)
    with torch.no_grad():
        pairs = zip(drawn.prompts, drawn.responses, strict=True)
        log_probs = [expected.response_log_probs(plain, *pair)[0] for pair in pairs]
    torch.save(tiny.recenter(drawn, log_probs), path / "sequences.pt")
    return path
