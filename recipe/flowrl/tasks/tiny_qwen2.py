"""A Qwen2 of 1 to 5 million parameters with a byte vocabulary: a base policy that any machine can train and serve.

The architecture is Qwen2's, so that transformers, verl and vLLM treat the directory as any other model.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import Qwen2ForCausalLM, Qwen2Tokenizer

HEAD_SIZES = (32, 64)
"""What vLLM's CPU attention and a model this small have in common."""

_PAD, _START, _END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"

_ROLES = ("system", "user", "assistant")
"""One token each, not one a byte: a quarter of a prompt would be spelling these."""

_LINE_FEED = "\u010a"
"""How byte-level BPE writes it."""

_CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@dataclass(frozen=True)
class TinyQwen2Config:
    """Sizes of the model. ``max_length`` is the longest sequence, prompt and response, in tokens."""

    hidden_size: int = 192
    layers: int = 3
    heads: int = 6
    intermediate_size: int = 512
    max_length: int = 256
    seed: int = 1

    def __post_init__(self) -> None:
        if self.hidden_size % self.heads or self.hidden_size // self.heads not in HEAD_SIZES:
            raise ValueError(
                f"tiny_qwen2: hidden_size={self.hidden_size} over heads={self.heads}: a head must have a size of "
                + " or ".join(map(str, HEAD_SIZES))
            )


def build(directory: Path, config: TinyQwen2Config) -> None:
    """Write a model with random weights, and its tokenizer, as a Hugging Face directory."""
    tokenizer = build_tokenizer()
    build_model(config, tokenizer).save_pretrained(directory)
    tokenizer.save_pretrained(directory)


def build_tokenizer(symbols: Iterable[str] | None = None) -> "Qwen2Tokenizer":
    """A token per byte (byte-level BPE without merges), per role and per special token; ChatML as chat template.

    Args:
        symbols: letters as byte-level BPE writes them; with them, only these and the line feed are tokens, instead of
            every byte. A symbol of several letters is a token that no text is encoded to.
    """
    from tokenizers import AddedToken
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import Qwen2Tokenizer

    symbols_of_bytes = sorted(ByteLevel.alphabet()) if symbols is None else [_LINE_FEED, *symbols]
    alphabet = {symbol: index for index, symbol in enumerate(symbols_of_bytes)}
    tokenizer = Qwen2Tokenizer(
        vocab=alphabet,
        merges=[],
        unk_token=_PAD,
        pad_token=_PAD,
        eos_token=_END,
        additional_special_tokens=[_START],
        chat_template=_CHAT_TEMPLATE,
    )
    tokenizer.add_tokens([AddedToken(role, special=False) for role in _ROLES])
    return tokenizer


def build_model(
    config: TinyQwen2Config, tokenizer: "Qwen2Tokenizer", initializer_range: float = 0.02
) -> "Qwen2ForCausalLM":
    """The model with random float32 weights; the same for the same ``config.seed``."""
    import torch
    from transformers import GenerationConfig, Qwen2Config, Qwen2ForCausalLM

    ids = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    architecture = Qwen2Config(
        # Not padded: vLLM masks ids beyond the tokenizer's, the trainer doesn't, and their probabilities would differ.
        vocab_size=len(tokenizer),
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        num_key_value_heads=config.heads,
        max_position_embeddings=config.max_length,
        tie_word_embeddings=True,
        initializer_range=initializer_range,
        bos_token_id=None,
        dtype="float32",
        **ids,
    )
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        model = Qwen2ForCausalLM(architecture)
    model.generation_config = GenerationConfig(**ids)
    return model
