"""The size of a model, from its configuration, on the meta device: no weights are read or made."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from recipe.flowrl.common.errors import UserError
from recipe.flowrl.models.kinds import refuse_untrainable
from recipe.flowrl.models.shrink import config_of

KNOWN = Path(__file__).parent / "model_configs"
"""Configurations of the paper's models, as published on the hub; ``/`` in a name is written ``--``."""


@dataclass(frozen=True)
class ModelShape:
    """Numbers that memory and FLOPs follow from; parameters are counted, not estimated."""

    parameters: int
    embedding_parameters: int
    """Of the input embedding, and of the language-model head where it is its own."""
    largest_block_parameters: int
    head_parameters: int
    """Of the log-partition head; 0 without FlowRL."""
    layers: int
    hidden: int
    intermediate: int
    vocabulary: int
    key_value_width: int
    """Of one layer's keys, in elements for a token; the values are as wide."""
    tied: bool
    """Whether the language-model head is the input embedding."""

    @property
    def critic(self) -> "ModelShape":
        """Of a critic on this model: a head of one output instead of the vocabulary's, and no log-partition head."""
        embedding = self.vocabulary * self.hidden
        parameters = self.parameters - (self.embedding_parameters - embedding) + self.hidden + 1
        return replace(self, parameters=parameters, embedding_parameters=embedding, head_parameters=0)


def load_architecture(name: str) -> dict[str, Any]:
    """The content of a model's config.json: of a directory, or of one of the paper's models.

    Raises:
        UserError: it is neither, or the model can't be trained.
    """
    directory = Path(name).expanduser()
    file = directory / "config.json" if directory.is_dir() else KNOWN / f"{name.replace('/', '--')}.json"
    if not file.is_file():
        known = ", ".join(sorted(path.stem.replace("--", "/") for path in KNOWN.glob("*.json")))
        raise UserError(
            f"actor_rollout_ref.model.path: {name} is no directory with a config.json and none of {known}: download "
            "the model, or its config.json alone, and give the directory"
        )
    try:
        architecture = json.loads(file.read_text())
    except ValueError as error:
        raise UserError(f"{file} isn't valid JSON ({error})") from error
    refuse_untrainable(architecture, f"actor_rollout_ref.model.path: {name}")
    return architecture


def shape_of(architecture: dict[str, Any], flowrl: DictConfig | None) -> ModelShape:
    """Build the model and the log-partition head on the meta device and count.

    Args:
        architecture: content of config.json.
        flowrl: the options of the head; None: there is none.

    Raises:
        UserError: transformers doesn't know the architecture.
    """
    import torch
    from transformers import AutoModelForCausalLM

    from recipe.flowrl.config import FlowRLConfig
    from recipe.flowrl.partition import LogPartition

    whole = config_of(architecture)
    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(whole)
    except Exception as error:  # of any family
        raise UserError(f"the model's architecture can't be built: {' '.join(str(error).split())[:160]}") from error
    config = whole.get_text_config()
    head = 0
    if flowrl is not None:
        with torch.device("meta"):
            partition = LogPartition(config.hidden_size, FlowRLConfig.from_mapping(flowrl))
        head = _count(partition)
    outer = {
        id(p): p.numel() for m in (model.get_input_embeddings(), model.get_output_embeddings()) for p in m.parameters()
    }
    head_width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    key_value_heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    return ModelShape(
        parameters=_count(model),
        embedding_parameters=sum(outer.values()),
        largest_block_parameters=max(map(_count, _blocks(model))),
        head_parameters=head,
        layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        intermediate=getattr(config, "intermediate_size", None) or 4 * config.hidden_size,
        vocabulary=config.vocab_size,
        key_value_width=key_value_heads * head_width,
        tied=bool(whole.tie_word_embeddings),
    )


def _blocks(model: Any) -> Any:
    """The decoder's layers, whatever the family calls them."""
    decoder = model.get_decoder()
    return next(getattr(decoder, name) for name in ("layers", "h", "blocks", "block") if hasattr(decoder, name))


def _count(module: Any) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
