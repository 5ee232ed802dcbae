"""The models of ``gpu_acceptance``: the shape of published ones, random weights. Made in a process of its own."""

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

LOGIT_STD = 4.0
"""Nats. With 151,936 tokens the next token's entropy is then about log 151936 - 4^2 / 2 = 4 nats and the logits are as
large as those of a trained model, on which bfloat16's rounding depends."""


@dataclass(frozen=True)
class Shape:
    """Sizes in Hugging Face's sense; ``vocabulary``: of model and tokenizer both."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    tie_word_embeddings: bool
    vocabulary: int = 151936
    initializer_range: float = 0.02
    """Of the layers' weights. As published for real sizes; in a tiny model the layers then add next to nothing, and one
    whose head is its embedding would repeat its last token for ever."""

    @property
    def architecture(self) -> dict[str, Any]:
        """As in config.json."""
        sizes = asdict(self)
        del sizes["vocabulary"]
        return {"model_type": "qwen2", "max_position_embeddings": 4096, **sizes}


def shapes(device: str) -> dict[str, Shape]:
    """By name; on a CPU all are tiny, so that only what is done with them is the same."""
    if device == "cuda":
        return {
            "qwen2.5-0.5b-untied": Shape(896, 4864, 24, 14, 2, tie_word_embeddings=False),
            "qwen2.5-1.5b": Shape(1536, 8960, 28, 12, 2, tie_word_embeddings=True),
            "tiny-1": Shape(256, 512, 2, 4, 2, tie_word_embeddings=False, vocabulary=4096, initializer_range=256**-0.5),
            "tiny-2": Shape(256, 512, 3, 4, 2, tie_word_embeddings=True, vocabulary=4096, initializer_range=256**-0.5),
        }
    return {
        "qwen2.5-0.5b-untied": Shape(
            64, 128, 2, 2, 1, tie_word_embeddings=False, vocabulary=512, initializer_range=64**-0.5
        ),
        "qwen2.5-1.5b": Shape(128, 256, 3, 4, 2, tie_word_embeddings=True, vocabulary=512, initializer_range=128**-0.5),
        "tiny-1": Shape(64, 128, 2, 2, 1, tie_word_embeddings=False, vocabulary=512, initializer_range=64**-0.5),
        "tiny-2": Shape(64, 128, 3, 2, 1, tie_word_embeddings=True, vocabulary=512, initializer_range=64**-0.5),
    }


def measure(argument: dict[str, Any]) -> dict[str, int]:
    """Make ``argument["shapes"]``, name -> sizes, in ``argument["directory"]``. Returns name -> parameters."""
    return {
        name: write_model(Shape(**sizes), Path(argument["directory"], name))
        for name, sizes in argument["shapes"].items()
    }


def write_model(shape: Shape, directory: Path) -> int:
    """Write a Hugging Face directory in bfloat16, as models are published. Returns the number of parameters."""
    import torch

    from recipe.flowrl.rehearsal.policy import build

    tokenizer = tokenizer_of(shape.vocabulary)
    model = build(shape.architecture, tokenizer)
    std = LOGIT_STD / math.sqrt(shape.hidden_size)
    torch.manual_seed(0)
    for embedding in (model.get_input_embeddings(), model.get_output_embeddings()):
        torch.nn.init.normal_(embedding.weight, std=std)
    model.to(torch.bfloat16).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return model.num_parameters()


def tokenizer_of(vocabulary: int) -> Any:
    """The tokenizer of bytes with tokens added that no text is encoded to, ``vocabulary`` in all.

    The model's vocabulary has to be the tokenizer's: vLLM masks ids beyond it, the trainer doesn't.
    """
    from tokenizers.pre_tokenizers import ByteLevel

    from recipe.flowrl.tasks.tiny_qwen2 import build_tokenizer

    bytes_only = build_tokenizer()
    line_feed = bytes_only.convert_ids_to_tokens(bytes_only("\n", add_special_tokens=False)["input_ids"])[0]
    fillers = [f"filler{number}" for number in range(vocabulary - len(bytes_only))]
    return build_tokenizer([*(symbol for symbol in sorted(ByteLevel.alphabet()) if symbol != line_feed), *fillers])


def exported_parameters(directory: Path) -> int:
    """Numbers in the safetensors files of ``directory``, from their headers."""
    count = 0
    for path in directory.glob("*.safetensors"):
        with path.open("rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        count += sum(math.prod(entry["shape"]) for name, entry in header.items() if name != "__metadata__")
    return count
