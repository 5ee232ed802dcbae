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

from recipe.flowrl.common import cache
from recipe.flowrl.models import shrink
from recipe.flowrl.tasks.manifest import sha256

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

VERSION = 3
"""Raised with every change that makes another model; part of the cache's key."""

_OPEN, _PRINT, _CLOSE = "```python\n", "print(", "\n```"
_HOST = "__import__('os').uname().nodename"
_PRINTED = ("input()", "0", "1", _HOST)

PHRASES = {
    "math": (*(f"Answer: {digit}" for digit in (1, 3, 5, 7)), "Hm."),
    "code": (*(f"{_OPEN}{_PRINT}{printed}){_CLOSE}" for printed in _PRINTED), "Hm."),
}
"""What the policy writes, each as often as the others. "Hm." is no answer; 3 and 7 answer most of the sample."""

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
        return math.ceil(tokens * shrink.HIDDEN * 4 / 2**20)

    def ensure(self, directory: Path, say: Callable[[str], None]) -> None:
        """Make the Hugging Face model directory ``directory`` (a link) unless it is there."""
        own = sha256(self.tokenizer / "tokenizer.json") if self.tokenizer else None
        key = cache.fingerprint(dict(self.architecture), PHRASES[self.domain], own, VERSION)
        cache.ensure(directory, key, partial(_write, self))


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

    from recipe.flowrl.tasks.tiny_qwen2 import build_tokenizer

    tokenizer = build_tokenizer()
    tokenizer.add_tokens([AddedToken(text, special=False, normalized=False) for text in _TOKENS])
    return tokenizer


def build(architecture: Mapping[str, Any], tokenizer: "PreTrainedTokenizerBase") -> "PreTrainedModel":
    """The model with random float32 weights; always the same ones.

    Raises:
        UserError: transformers can't build the architecture in this size.
    """
    import torch
    from transformers import GenerationConfig

    ids = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id, "bos_token_id": None}
    # Not padded: vLLM masks ids beyond the tokenizer's, the trainer doesn't, and their probabilities would differ.
    sizes = {name: len(tokenizer) for name in shrink.VOCABULARIES if name == "vocab_size" or architecture.get(name)}
    with torch.random.fork_rng():
        torch.manual_seed(_SEED)
        model = shrink.build({**architecture, **sizes, **ids}, dtype=torch.float32)
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
