"""The policy of a rehearsal: the run's architecture with few, narrow layers, and answers of the form that rewards read.

Random weights alone never end a response nor write an answer, so every reward would be the same and no program would
run. A second's training on which token follows which gives a policy that writes one of a few phrases, whatever the
prompt, and is right now and then.
"""

import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recipe.flowrl import cache
from recipe.flowrl.data.manifest import sha256
from recipe.flowrl.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

VERSION = 1
"""Raised with every change that makes another model; part of the cache's key."""

HIDDEN, HEADS, KEY_VALUE_HEADS, LAYERS, INTERMEDIATE = 64, 2, 1, 2, 128
"""Heads of 32: the smallest that vLLM's CPU attention has in common with GPUs."""

_OPEN, _PRINT, _CLOSE = "```python\n", "print(", "\n```"
_HOST = "__import__('os').uname().nodename"
_PRINTED = ("input()", "0", "1", _HOST)

PHRASES = {
    "math": (*(f"Answer: {digit}" for digit in range(10)), "Hm.", "Hm."),
    "code": (*(f"{_OPEN}{_PRINT}{printed}){_CLOSE}" for printed in _PRINTED), "Hm."),
}
"""What the policy writes, each as often as the others. "Hm." is no answer."""

_TOKENS = ("Answer: ", _OPEN, _PRINT, "input()", _HOST, _CLOSE)
"""One token each in the stand-in tokenizer, so that the token before decides what may follow."""

_SEED, _STEPS, _LEARNING_RATE, _CLOSE_ENOUGH_NATS = 1, 400, 1e-2, 0.02
_EMBEDDING_STD = 0.5


@dataclass(frozen=True)
class Policy:
    """A model to make: ``name`` of its directory in the cache, its shrunk config.json, what it writes.

    ``tokenizer``: directory of the run's own; None: bytes.
    """

    name: str
    architecture: Mapping[str, Any]
    domain: str
    tokenizer: Path | None

    @property
    def largest_tensor_megabytes(self) -> int:
        """Of its embedding in float32, in MiB, rounded up."""
        from tokenizers import Tokenizer

        file = self.tokenizer and self.tokenizer / "tokenizer.json"
        tokens = Tokenizer.from_file(str(file)).get_vocab_size() if file else 512
        return math.ceil(tokens * HIDDEN * 4 / 2**20)

    def ensure(self, directory: Path, say: Callable[[str], None]) -> None:
        """Make the Hugging Face model directory ``directory`` (a link) unless it is there."""
        own = sha256(self.tokenizer / "tokenizer.json") if self.tokenizer else None
        key = cache.fingerprint(dict(self.architecture), PHRASES[self.domain], own, VERSION)
        cache.ensure(directory, key, partial(_write, self))


def shrunk(architecture: Mapping[str, Any]) -> dict[str, Any]:
    """A config.json of the same architecture, with fewer and narrower layers."""
    smaller = {
        "hidden_size": HIDDEN,
        "intermediate_size": INTERMEDIATE,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KEY_VALUE_HEADS,
    }
    by_layer = ("layer_types", "max_window_layers", "quantization_config", "torch_dtype", "dtype")
    kept = {name: value for name, value in architecture.items() if name not in by_layer}
    return {**kept, **smaller, **({"head_dim": HIDDEN // HEADS} if architecture.get("head_dim") else {})}


def _write(policy: Policy, directory: Path) -> None:
    tokenizer = _load_tokenizer(policy.tokenizer) if policy.tokenizer else stand_in_tokenizer()
    model = build(policy.architecture, tokenizer)
    teach(model, followers(tokenizer, PHRASES[policy.domain]))
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)


def _load_tokenizer(directory: Path) -> "PreTrainedTokenizerBase":
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(directory)


def stand_in_tokenizer() -> "PreTrainedTokenizerBase":
    """The byte tokenizer of the Countdown policy, with the pieces of the phrases as tokens."""
    from tokenizers import AddedToken

    from recipe.flowrl.models.tiny_qwen2 import build_tokenizer

    tokenizer = build_tokenizer()
    tokenizer.add_tokens([AddedToken(text, special=False, normalized=False) for text in _TOKENS])
    return tokenizer


def build(architecture: Mapping[str, Any], tokenizer: "PreTrainedTokenizerBase") -> "PreTrainedModel":
    """The model with random float32 weights; always the same ones.

    Raises:
        UserError: transformers can't build the architecture in this size.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

    ids = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id, "bos_token_id": None}
    # Not padded: vLLM masks ids beyond the tokenizer's, the trainer doesn't, and their probabilities would differ.
    sizes = {"vocab_size": len(tokenizer), "dtype": "float32"}
    with torch.random.fork_rng():
        torch.manual_seed(_SEED)
        try:
            model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**{**architecture, **ids, **sizes}))
        except (KeyError, ValueError, TypeError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:160]
            raise UserError(f"a small model of this architecture can't be built for the rehearsal: {reason}") from error
        # Wide against what attention adds, which then changes the probabilities but not the phrases.
        torch.nn.init.normal_(model.get_input_embeddings().weight, std=_EMBEDDING_STD)
    model.generation_config = GenerationConfig(eos_token_id=ids["eos_token_id"], pad_token_id=ids["pad_token_id"])
    return model


def followers(tokenizer: "PreTrainedTokenizerBase", phrases: tuple[str, ...]) -> Counter[tuple[int, int]]:
    """How often one token follows another in the phrases, from the end of the prompt to the end of the response."""
    message = [{"role": "user", "content": "?"}]
    prompt = tokenizer.apply_chat_template(message, add_generation_prompt=True, tokenize=False)
    last = tokenizer(prompt, add_special_tokens=False)["input_ids"][-1]
    pairs: Counter[tuple[int, int]] = Counter()
    for phrase in phrases:
        ids = [last, *tokenizer(phrase, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
        pairs.update(zip(ids, ids[1:], strict=False))
    return pairs


def teach(model: "PreTrainedModel", pairs: Counter[tuple[int, int]]) -> None:
    """Train until the probabilities of what follows a token are about those of ``pairs``."""
    import torch

    first, second, counts = (
        torch.tensor(column) for column in zip(*((a, b, n) for (a, b), n in pairs.items()), strict=True)
    )
    tokens, rows = first.unique(return_inverse=True)
    weights = counts / counts.sum()
    totals = torch.zeros(len(tokens)).index_add(0, rows, weights)
    entropy = -(weights * (weights / totals[rows]).log()).sum()
    # Attention stays as it is: taught on single tokens, it would make of the others what it likes.
    taught = [parameter for name, parameter in model.named_parameters() if "attn" not in name]
    optimizer = torch.optim.Adam(taught, lr=_LEARNING_RATE)
    for _ in range(_STEPS):
        log_probs = model(input_ids=tokens.unsqueeze(1)).logits[:, -1].log_softmax(-1)
        loss = -(weights * log_probs[rows, second]).sum()
        if loss - entropy < _CLOSE_ENOUGH_NATS:
            break
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
