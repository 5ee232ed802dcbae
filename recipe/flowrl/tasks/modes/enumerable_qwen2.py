"""The base policy of the exact test's tasks: a Qwen2 with a token for each symbol and seven others, random weights.

Its vocabulary is so small that the probability of every answer can be computed. The weights are wide enough for its
distribution, which is the reference, to differ from the uniform one.
"""

from functools import partial
from pathlib import Path

from recipe.flowrl.common import cache
from recipe.flowrl.tasks.modes.data import SYMBOLS
from recipe.flowrl.tasks.tiny_qwen2 import TinyQwen2Config, build_model, build_tokenizer

CONFIG = TinyQwen2Config(hidden_size=64, layers=2, heads=2, intermediate_size=128, max_length=32)
INITIALIZER_RANGE = 0.05

VERSION = 1
"""Raised with every change that makes another model; part of the cache's key."""


def ensure_model(directory: Path, symbols: str = SYMBOLS) -> Path:
    """Make the Hugging Face model directory ``directory`` (a link) unless it is there."""
    key = cache.fingerprint(CONFIG, INITIALIZER_RANGE, symbols, VERSION)
    return cache.ensure(directory, key, partial(_write, symbols=symbols))


def _write(directory: Path, symbols: str) -> None:
    tokenizer = build_tokenizer(symbols)
    build_model(CONFIG, tokenizer, INITIALIZER_RANGE).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
