"""What a run does with each model family: the table in ``docs/models.md``, from the same trials that a run makes.

``python tests/helpers/model_table.py`` writes it anew.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

from made_tables import between
from published_configs import ENGINE_IN_CI, ENGINE_OTHERS, PUBLISHED

from recipe.flowrl.common.project import PROJECT
from recipe.flowrl.models.rollout_adapters import fault_in_vllm
from recipe.flowrl.models.trial import EAGER, SDPA, trial_of

DOCUMENT = PROJECT / "docs" / "models.md"
BEGIN, END = "<!-- model families: tests/helpers/model_table.py -->", "<!-- end of the model families -->"
FLASH = "flash_attention_2"

REHEARSED: dict[str, str] = dict.fromkeys(
    ("Qwen3-30B-A3B", "Llama-3.1-8B", "gemma-2-2b", "Phi-4-mini-instruct", "granite-3.3-8b", "OLMo-2-1124-7B"),
    "agrees, exports",
)
"""Name -> what ``dryrun=true`` with its configuration ended with, on a machine of two cores: rollout and trainer agree
before and after a sync, what it exports loads."""


def cells(name: str, architecture: dict[str, Any]) -> Iterator[str]:
    """What a run takes of each kind of path."""
    trial = trial_of(architecture)
    sdpa, flash = trial.attention(SDPA), trial.attention(FLASH)
    attention = EAGER if sdpa else SDPA
    yield f"{name} (`{architecture['model_type']}`)"
    yield f"`{attention}`"
    yield f"`{attention if flash else FLASH}`"
    yield "padded" if trial.packed(attention) else "packed"
    yield "unfused" if trial.fused() else "fused"
    lora = {"r": 4, "target_modules": "all-linear"}
    adapters = trial.adapters(**lora)
    adapters = adapters or fault_in_vllm(architecture.get("architectures") or (), trial.adapted_layers(**lora))
    yield f"`{','.join(trial.attention_layers)}`" if adapters else "all"
    yield "every run" if name in ENGINE_IN_CI else "`-m slow`" if name in ENGINE_OTHERS else "–"
    yield REHEARSED.get(name, "–")


def table() -> Iterator[str]:
    """The lines of the table."""
    yield "| model | attention, CPU | attention, GPU | sequences | log-probs | LoRA on | engine tests | rehearsal |"
    yield "| --- " * 8 + "|"
    for name, architecture in PUBLISHED.items():
        yield f"| {' | '.join(cells(name, architecture))} |"


def document(text: str) -> str:
    """``text`` with the table between its two marks."""
    return between(text, BEGIN, table(), END)


if __name__ == "__main__":
    DOCUMENT.write_text(document(DOCUMENT.read_text()))
    sys.exit(0)
