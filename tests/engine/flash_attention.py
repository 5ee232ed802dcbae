"""A stand-in for the package flash-attn in plain PyTorch: what transformers' ``flash_attention_2`` path calls.

All above the kernel is the real thing: packing, ``cu_seqlens`` from the position ids, Ulysses' exchange of heads.
"""

from __future__ import annotations

import sys
import types
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib.machinery import ModuleSpec
from unittest import mock

import torch
from torch import Tensor
from transformers import PreTrainedModel, modeling_flash_attention_utils


@contextmanager
def flash_attention() -> Iterator[list[int]]:
    """With flash-attn there, as far as this process can tell; the list gets the number of sequences of each call."""
    calls: list[int] = []

    def flash_attn_varlen_func(
        q: Tensor,
        k: Tensor,
        v: Tensor,
        cu_seqlens_q: Tensor,
        cu_seqlens_k: Tensor,
        max_seqlen_q: int,
        max_seqlen_k: int,
        dropout_p: float = 0.0,
        softmax_scale: float | None = None,
        causal: bool = False,
        window_size: tuple[int, int] = (-1, -1),
        deterministic: bool = False,
    ) -> Tensor:
        """Attention within each sequence of ``(tokens, heads, size)``; fewer key heads than query heads are shared."""
        assert causal and dropout_p == 0.0 and window_size == (-1, -1)
        assert torch.equal(cu_seqlens_q, cu_seqlens_k) and cu_seqlens_q[-1] == len(q) == len(k)
        calls.append(len(cu_seqlens_q) - 1)
        lengths = cu_seqlens_q.diff().tolist()
        assert max(lengths) == int(max_seqlen_q) == int(max_seqlen_k)
        rows = zip(*(tensor.split(lengths) for tensor in (q, k, v)), strict=True)
        return torch.cat([_attention(*(part.transpose(0, 1) for part in row), softmax_scale) for row in rows])

    def flash_attn_func(
        q: Tensor,
        k: Tensor,
        v: Tensor,
        dropout_p: float = 0.0,
        softmax_scale: float | None = None,
        causal: bool = False,
        window_size: tuple[int, int] = (-1, -1),
        deterministic: bool = False,
    ) -> Tensor:
        """The same for ``(batch, tokens, heads, size)``."""
        assert causal and dropout_p == 0.0 and window_size == (-1, -1)
        calls.append(len(q))
        return torch.stack(
            [_attention(*(part.transpose(0, 1) for part in row), softmax_scale) for row in zip(q, k, v, strict=True)]
        )

    package = types.ModuleType("flash_attn")
    package.__spec__ = ModuleSpec("flash_attn", loader=None, is_package=True)
    package.__path__ = []
    package.flash_attn_func, package.flash_attn_varlen_func = flash_attn_func, flash_attn_varlen_func
    package.flash_attn_with_kvcache = None
    padding = types.ModuleType("flash_attn.bert_padding")
    padding.pad_input = modeling_flash_attention_utils._pad_input
    padding.unpad_input = modeling_flash_attention_utils._unpad_input
    with ExitStack() as stack:
        stack.enter_context(mock.patch.dict(sys.modules, {"flash_attn": package, "flash_attn.bert_padding": padding}))
        stack.enter_context(
            mock.patch.object(modeling_flash_attention_utils, "is_flash_attn_2_available", lambda: True)
        )
        stack.enter_context(
            mock.patch.object(PreTrainedModel, "_flash_attn_can_dispatch", lambda self, *args, **kwargs: True)
        )
        # transformers keeps what it found first.
        stack.enter_context(mock.patch.object(modeling_flash_attention_utils, "_loaded_implementation", None))
        yield calls


def _attention(q: Tensor, k: Tensor, v: Tensor, scale: float | None) -> Tensor:
    """Causal attention of one sequence, ``(heads, tokens, size)`` to ``(tokens, heads, size)``."""
    attended = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=True)
    return attended.transpose(0, 1)
