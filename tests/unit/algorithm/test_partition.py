"""The head's input, the mean over a prompt's hidden states, in every layout; and the head itself."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from recipe.flowrl.config import FlowRLConfig
from recipe.flowrl.partition import LogPartition, prompt_mean

PROMPTS = torch.tensor([3, 1, 6, 2])
RESPONSES = torch.tensor([4, 5, 1, 2])
LENGTHS = PROMPTS + RESPONSES
HIDDEN = 8


@pytest.fixture
def rows() -> list[Tensor]:
    """Hidden states of four sequences, ``(length, HIDDEN)`` each."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(length, HIDDEN, generator=generator) for length in LENGTHS.tolist()]


def pack(rows: list[Tensor], padding: int = 0) -> Tensor:
    return nn.functional.pad(torch.cat(rows), (0, 0, 0, padding), value=torch.nan)


def pad(rows: list[Tensor], padding: int = 0) -> Tensor:
    padded = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=torch.nan)
    return nn.functional.pad(padded, (0, 0, 0, padding), value=torch.nan)


LAYOUTS = [(pack, 0), (pack, 5), (pad, 0), (pad, 5)]


def pooled(rows: list[Tensor], layout: tuple) -> Tensor:
    arrange, padding = layout
    return prompt_mean(arrange(rows, padding), PROMPTS, LENGTHS, packed=arrange is pack)


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: f"{layout[0].__name__} + {layout[1]}")
def test_mean_over_the_prompt_alone(rows: list[Tensor], layout: tuple) -> None:
    """Padding holds NaN, so that a single padded position in a sum would show."""
    naive = torch.stack([row[:length].mean(0) for row, length in zip(rows, PROMPTS.tolist(), strict=True)])
    torch.testing.assert_close(pooled(rows, layout), naive)


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: f"{layout[0].__name__} + {layout[1]}")
def test_every_prompt_token_has_the_same_share_and_no_other_has_any(rows: list[Tensor], layout: tuple) -> None:
    """From the first token to the last one, whose state the response is sampled from."""
    for row in rows:
        row.requires_grad_()
    pooled(rows, layout).sum().backward()
    for row, prompt in zip(rows, PROMPTS.tolist(), strict=True):
        share = torch.zeros_like(row)
        share[:prompt] = 1 / prompt
        torch.testing.assert_close(row.grad, share)


def test_sums_in_float32(rows: list[Tensor]) -> None:
    """A bfloat16 sum over a long prompt would stop growing at 256 ones."""
    ones = torch.ones(2000, HIDDEN, dtype=torch.bfloat16)
    mean = prompt_mean(ones, torch.tensor([1999]), torch.tensor([2000]), packed=True)
    assert mean.dtype == torch.float32
    torch.testing.assert_close(mean, torch.ones(1, HIDDEN))


def test_the_papers_head() -> None:
    """Three layers of the model's width; float32 from a bfloat16 policy; one number a prompt."""
    head = LogPartition(HIDDEN, FlowRLConfig())
    linear = [layer for layer in head.layers if isinstance(layer, nn.Linear)]
    assert [(layer.in_features, layer.out_features) for layer in linear] == [
        (HIDDEN, HIDDEN),
        (HIDDEN, HIDDEN),
        (HIDDEN, 1),
    ]
    assert not any(isinstance(layer, nn.Dropout) for layer in head.layers)
    log_z = head(torch.randn(5, HIDDEN, dtype=torch.bfloat16))
    assert log_z.shape == (5,)
    assert log_z.dtype == torch.float32


@pytest.mark.parametrize(
    ("depth", "width", "shapes"),
    [
        (1, None, [(HIDDEN, 1)]),
        (1, 5, [(HIDDEN, 1)]),
        (2, 5, [(HIDDEN, 5), (5, 1)]),
        (4, 5, [(HIDDEN, 5), (5, 5), (5, 5), (5, 1)]),
    ],
)
def test_depth_and_width(depth: int, width: int | None, shapes: list[tuple[int, int]]) -> None:
    head = LogPartition(HIDDEN, FlowRLConfig(partition_depth=depth, partition_width=width))
    linear = [layer for layer in head.layers if isinstance(layer, nn.Linear)]
    assert [(layer.in_features, layer.out_features) for layer in linear] == shapes
    assert head(torch.zeros(3, HIDDEN)).shape == (3,)


def test_dropout_after_each_hidden_layer_in_training_only() -> None:
    torch.manual_seed(0)
    head = LogPartition(HIDDEN, FlowRLConfig(partition_dropout=0.3))
    assert [layer.p for layer in head.layers if isinstance(layer, nn.Dropout)] == [0.3, 0.3]
    states = torch.randn(1, HIDDEN).expand(50, -1)
    assert head(states).unique().numel() > 1
    # Not bit for bit: a matrix product may round its last rows, which fill no vector register, in another way.
    evaluated = head.eval()(states)
    torch.testing.assert_close(evaluated, evaluated[:1].expand(50))
