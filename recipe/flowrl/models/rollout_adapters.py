"""Whether vLLM takes the LoRA adapters of a model's layers.

vLLM computes some layers together, such as the three of attention, and its class of a model says which it takes apart.
Where that names parts of a layer that is one in transformers (GLM-4's ``gate_up_proj``), its worker fails at the first
weight sync.
"""

from collections.abc import Collection, Iterable
from contextlib import suppress


def fault_in_vllm(architectures: Iterable[str], layers: Collection[str]) -> str | None:
    """What is wrong, in words; None if nothing is, or vLLM doesn't know the model. Imports vLLM, which takes seconds.

    Args:
        architectures: of the model's config.json.
        layers: last parts of the names of the adapted layers.
    """
    from vllm.model_executor.models.registry import ModelRegistry

    for name in architectures:
        together: dict[str, list[str]] = {}
        with suppress(KeyError, ImportError):  # a model that vLLM doesn't have, or not here, as it says when it starts
            together = getattr(ModelRegistry.models[name].load_model_cls(), "packed_modules_mapping", {})
        for layer in sorted(set(layers) & set(together)):
            if layer not in together[layer]:
                return f"vLLM's {name} wants an adapter for each of {', '.join(together[layer])}, and {layer} has one"
    return None
