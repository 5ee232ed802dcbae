"""Models that aren't trained here, told by their config.json alone, before any library is imported."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from recipe.flowrl.common.errors import UserError

_TOWER = re.compile(
    r"(vision|visual|vit|image|img|video|audio|speech|sound|music|talker|code2wav|vq|vae|qformer|perceiver|mm)(_|$)"
)
_PART = re.compile(r"(_config|_tower|_processor|_encoder|_model)$|^visual$")

_NO_MODELS = ("quantization_config", "generation_config", "compression_config")


def refuse_untrainable(architecture: Mapping[str, Any], where: str) -> None:
    """Refuse what isn't a causal language model with weights that can be trained.

    Args:
        architecture: content of config.json.
        where: of it, the beginning of the message.

    Raises:
        UserError: the model takes more than text, encodes its input, or has quantised weights.
    """
    if seen := next(_towers(architecture), None):
        raise UserError(
            f"{where} is a multimodal model (it has {seen}), and only text models are trained here: give a text-only "
            "checkpoint of the family, or save the language model alone (its text_config and its weights)"
        )
    if architecture.get("is_encoder_decoder"):
        raise UserError(f"{where} is an encoder-decoder (is_encoder_decoder): give a causal language model")
    quantisation = architecture.get("quantization_config") or {}
    if quantisation:
        method = quantisation.get("quant_method") or quantisation.get("quant_algo") or "quantization_config"
        raise UserError(
            f"{where} has quantised weights ({method}), which can't be trained: give the checkpoint in bfloat16, or "
            "dequantise it first"
        )


def _towers(section: Mapping[str, Any]) -> Iterator[str]:
    """Names of the parts that take something else than text: by what they are called, or beside a ``text_config``."""
    for name, value in section.items():
        if not value or not isinstance(value, dict | str) or name in _NO_MODELS:
            continue
        beside_text = isinstance(value, dict) and name.endswith("_config") and name != "text_config"
        if (_TOWER.match(name) and _PART.search(name)) or (beside_text and "text_config" in section):
            yield name
        elif isinstance(value, dict) and name.endswith("_config"):
            yield from (f"{name}.{inner}" for inner in _towers(value))
