"""How a model behaves on the paths that verl's engine can take, tried on a small copy before a run.

A family's code decides whether packed sequences see one another, whether the attention in use leaves out something that
the family's own has, and whether log-probs are those of the product of hidden state and head, as fused kernels take
them to be. No such fault raises anything: log-probs are wrong, by up to nats. So each path is compared with the plain
one: a sequence alone, in eager attention. On 140 families of transformers 5.10, paths that agree do so within 3e-5
nats, and those that don't differ by 9e-3 or more.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from typing import TYPE_CHECKING, Any

from recipe.flowrl.common.errors import UserError
from recipe.flowrl.models.shrink import build, shrunk

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

EAGER, SDPA, FLASH = "eager", "sdpa", "flash_attention"
TOLERANCE_NATS = 5e-4
_VOCABULARY, _WINDOW = 96, 4
_LENGTHS = (7, 1, 11, 4)
"""Of the sequences, in tokens; some are longer than the window."""
_SCALE, _SHIFT_STD = 1.5, 0.5
"""Of random weights: so wide that softcaps, scales and biases show, and not so wide that attention sees one token."""
_SEED = 3
_FAILURES = (RuntimeError, ValueError, TypeError, AttributeError, LookupError)
"""What a family's forward pass may raise on sizes that it doesn't expect."""


@lru_cache(maxsize=8)
def _trial(architecture: str) -> "Trial":
    return Trial(json.loads(architecture))


def trial_of(architecture: Mapping[str, Any]) -> "Trial":
    """The trial of a model, made once a process. ``architecture``: content of its config.json."""
    return _trial(json.dumps(architecture, sort_keys=True))


@dataclass(frozen=True)
class Trial:
    """A small random model of an architecture, on one path after another; each costs a tenth of a second.

    Its methods say what is wrong with a path, in words, and None if nothing is. They raise UserError where there is no
    small model of the architecture.
    """

    architecture: Mapping[str, Any]

    def attention(self, name: str) -> str | None:
        """What is wrong with an implementation of attention. Flash attention needs CUDA: whether the family has it."""
        if name.startswith(FLASH):
            kind, theirs = type(self._plain), getattr(self._plain, "_compatible_flash_implementations", None)
            if not kind._supports_flash_attn or (theirs is not None and name not in theirs):
                return f"{kind.__name__} doesn't support {name}"
            return None
        try:
            model = self._model(name)
        except UserError:
            return f"{type(self._plain).__name__} doesn't support {name}"
        return self._fault(partial(_alone, model))

    def packed(self, attention: str) -> str | None:
        """What is wrong with packed sequences that are told apart by their positions alone."""
        return self._fault(partial(_packed, self._model(attention)))

    def padded(self, attention: str) -> str | None:
        """What is wrong with sequences padded on the right."""
        return self._fault(partial(_padded, self._model(attention)))

    def fused(self) -> str | None:
        """What is wrong with log-probs of the product of the decoder's output and the head's weight."""
        for name in ("model", "lm_head"):  # what verl's fused forward calls
            if not hasattr(self._plain, name):
                return f"{type(self._plain).__name__} has no {name}"
        return self._fault(partial(_product, self._plain))

    def adapters(self, **lora: Any) -> str | None:
        """What is wrong with LoRA adapters: of themselves, or once verl has exported them.

        An export names the adapted layers by the last part of their names, and nothing but layers.

        Args:
            **lora: arguments of PEFT's ``LoraConfig``.
        """
        try:
            layers, others = self._adapted(**lora)
        except _FAILURES as error:
            return f"PEFT fails on it ({_line(error)})"
        if others:
            return f"it adapts {min(others)}, which an exported adapter can't name"
        names = sorted({name.rpartition(".")[2] for name in layers})
        try:
            again, _ = self._adapted(target_modules=names)
        except _FAILURES as error:
            return f"an exported adapter doesn't load ({_line(error)})"
        return None if again == layers else f"an exported adapter has other layers, also called {', '.join(names)}"

    def adapted_layers(self, **lora: Any) -> set[str]:
        """Last parts of the names of the layers that PEFT adapts, where :meth:`adapters` finds no fault."""
        return {name.rpartition(".")[2] for name in self._adapted(**lora)[0]}

    def _adapted(self, **lora: Any) -> tuple[set[str], set[str]]:
        """Names of the layers that PEFT adapts, and of the modules in which it adapts bare parameters."""
        from peft import LoraConfig, TaskType, get_peft_model
        from peft.tuners.lora.layer import LoraLayer, ParamWrapper

        with _quiet():
            model = get_peft_model(self._built(EAGER), LoraConfig(task_type=TaskType.CAUSAL_LM, **lora))
        found = {name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)}
        bare = [name.replace(".base_layer", "") for name, module in found.items() if isinstance(module, ParamWrapper)]
        return set(found), {name.rpartition(".")[2] for name in bare}

    @property
    def attention_layers(self) -> list[str]:
        """Names of the linear layers of attention, for LoRA's ``target_modules``."""
        from torch import nn

        names = [name for name, module in self._plain.named_modules() if isinstance(module, nn.Linear)]
        return list(dict.fromkeys(name.rpartition(".")[2] for name in names if "attn" in name))

    @cached_property
    def _plain(self) -> "PreTrainedModel":
        import torch

        model, generator = self._built(EAGER), torch.Generator().manual_seed(_SEED)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.ndim > 1:
                    parameter.normal_(std=_SCALE / parameter.shape[-1] ** 0.5, generator=generator)
                elif "norm" not in name:
                    parameter.normal_(std=_SHIFT_STD, generator=generator)
        return model

    @cached_property
    def expected(self) -> "list[Tensor]":
        """Log-probs of each sequence alone. Raises UserError where there is no small model."""
        import torch

        try:
            with torch.no_grad(), _quiet():
                return _alone(self._plain, _sequences())
        except _FAILURES as error:
            raise UserError(f"a small model of {self.architecture.get('model_type')} fails: {_line(error)}") from error

    def _model(self, attention: str) -> "PreTrainedModel":
        """The same weights, whatever the attention."""
        if attention == EAGER:
            return self._plain
        model = self._built(attention)
        model.load_state_dict(self._plain.state_dict())
        return model

    def _built(self, attention: str) -> "PreTrainedModel":
        import torch

        ids = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2}
        sizes = {"vocab_size": _VOCABULARY, "sliding_window": _WINDOW, "attention_chunk_size": _WINDOW}
        with _quiet(), torch.random.fork_rng(devices=[]):
            small = shrunk(self.architecture, **sizes, **ids)
            return build(small, attn_implementation=attention, dtype=torch.float32).eval()

    def _fault(self, path: "Callable[[list[Tensor]], list[Tensor]]") -> str | None:
        import torch

        try:
            with torch.no_grad(), _quiet():
                found = path(_sequences())
            worst = max((a - b).abs().max().item() for a, b in zip(found, self.expected, strict=True))
        except _FAILURES as error:
            return f"it fails ({_line(error)})"
        # Written so that NaN is a fault.
        return None if worst <= TOLERANCE_NATS else f"log-probs are off by {worst:.2g} nats in a small model of it"


def _sequences() -> "list[Tensor]":
    import torch

    generator = torch.Generator().manual_seed(_SEED)
    return [torch.randint(5, _VOCABULARY, (length,), generator=generator) for length in _LENGTHS]


def _alone(model: "PreTrainedModel", rows: "list[Tensor]") -> "list[Tensor]":
    """Log-probs ``(length, vocabulary)`` of each sequence by itself."""
    return [model(row.unsqueeze(0), use_cache=False).logits[0].log_softmax(-1) for row in rows]


def _packed(model: "PreTrainedModel", rows: "list[Tensor]") -> "list[Tensor]":
    import torch

    positions = torch.cat([torch.arange(len(row)) for row in rows]).unsqueeze(0)
    output = model(torch.cat(rows).unsqueeze(0), attention_mask=None, position_ids=positions, use_cache=False)
    return list(output.logits[0].log_softmax(-1).split([len(row) for row in rows]))


def _padded(model: "PreTrainedModel", rows: "list[Tensor]") -> "list[Tensor]":
    import torch

    columns = {
        "input_ids": rows,
        "attention_mask": [torch.ones_like(row) for row in rows],
        "position_ids": [torch.arange(len(row)) for row in rows],
    }
    batch = {name: torch.nn.utils.rnn.pad_sequence(column, True) for name, column in columns.items()}
    logits = model(**batch, use_cache=False).logits
    return [values[: len(row)].log_softmax(-1) for values, row in zip(logits, rows, strict=True)]


def _product(model: "PreTrainedModel", rows: "list[Tensor]") -> "list[Tensor]":
    states = [model.model(row.unsqueeze(0), use_cache=False)[0][0] for row in rows]
    return [(state @ model.lm_head.weight.T).log_softmax(-1) for state in states]


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:120]


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' remarks on a model whose numbers are made up."""
    from transformers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)
