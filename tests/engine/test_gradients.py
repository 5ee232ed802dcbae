"""The gradient of a global mini-batch: independent of how it is cut, and that of the paper's equation."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import expected
import pytest
import torch
from tiny import Sequences
from torch import Tensor

from recipe.flowrl.config import FlowRLConfig

Gradients = dict[str, Tensor]

SAME = (
    "one micro-batch",
    "micro-batches of 1",
    "micro-batches of 2",
    "micro-batches of 3",
    "micro-batches of 8",
    "24 tokens a micro-batch",
    "60 tokens a micro-batch",
    "10000 tokens a micro-batch",
    "padded",
    "padded, 60 tokens a micro-batch",
    "gradient synchronised in every micro-batch",
    "not resharded after the forward pass",
    "packed length rounded up",
    "replicated",
    "offloaded",
    "gradient checkpointing",
)
"""Runs of the scenario ``gradients`` that differ in nothing but how the same is computed."""


def assert_same(actual: Gradients, desired: Gradients) -> None:
    """Equal within float32's rounding, measured on the scale of the whole gradient."""
    assert actual.keys() == desired.keys()
    scale = max(tensor.abs().max().item() for tensor in desired.values())
    assert scale > 0
    for name, tensor in desired.items():
        torch.testing.assert_close(actual[name].double(), tensor.double(), rtol=1e-5, atol=1e-6 * scale, msg=name)


@pytest.fixture(scope="module")
def reference(directory: Path, sequences: Sequences, results_1: dict) -> Callable[..., tuple]:
    """Loss and gradients of the equation for the head that the engine has: ``reference(family, config)``."""

    def compute(family: str = "qwen2", config: FlowRLConfig | None = None) -> tuple[float, Gradients, Gradients]:
        head = results_1["gradients"]["head"]
        return expected.gradients(directory / family, head, sequences, config or FlowRLConfig())

    return compute


@pytest.fixture(scope="module")
def base(reference: Callable[..., tuple]) -> tuple[float, Gradients, Gradients]:
    return reference()


@pytest.mark.parametrize("name", SAME)
def test_however_it_is_cut_it_is_the_equations(name: str, result: Callable[[str], Any], base: tuple) -> None:
    loss, policy, head = base
    run = result("gradients")["runs"][name]
    assert_same(run["policy"], policy)
    assert_same(run["head"], head)
    assert run["metrics"]["loss"] == pytest.approx(loss, rel=1e-5)


@pytest.mark.parametrize("name", SAME)
def test_metrics_are_those_of_one_rank_and_one_micro_batch(
    name: str, result: Callable[[str], Any], results_1: dict
) -> None:
    plain = results_1["gradients"]["runs"]["one micro-batch"]["metrics"]
    metrics = result("gradients")["runs"][name]["metrics"]
    assert metrics.keys() == plain.keys()
    for key, value in plain.items():
        if key.startswith("flowrl/") or key == "grad_norm":
            assert metrics[key] == pytest.approx(value, rel=1e-5, abs=1e-6), key


def test_the_policy_learns_from_log_z_unless_detached(
    result: Callable[[str], Any], base: tuple, reference: Callable[..., tuple]
) -> None:
    runs = result("gradients")["runs"]
    _, policy, head = reference(config=FlowRLConfig(partition_detach=True))
    assert_same(runs["detached"]["policy"], policy)
    assert_same(runs["detached"]["head"], head)
    for name, gradient in base[1].items():
        through_log_z = (gradient - policy[name]).norm() / gradient.norm()
        if name == "lm_head.weight":
            assert through_log_z == 0, "log Z lies before the language-model head"
        else:
            assert through_log_z > 1e-3, name


@pytest.mark.parametrize("size", [3, 8])
@pytest.mark.parametrize("normalization", ["residual", "residual_root"])
def test_the_whole_residual_divided(
    normalization: str, size: int, result: Callable[[str], Any], reference: Callable[..., tuple]
) -> None:
    loss, policy, head = reference(config=FlowRLConfig(length_normalization=normalization))
    run = result("gradients")["runs"][f"{normalization}, micro-batches of {size}"]
    assert_same(run["policy"], policy)
    assert_same(run["head"], head)
    assert run["metrics"]["loss"] == pytest.approx(loss, rel=1e-5)


@pytest.mark.parametrize("size", [3, 8])
def test_ppos_loss_beside_flowrls(
    size: int, result: Callable[[str], Any], base: tuple, reference: Callable[..., tuple]
) -> None:
    loss, policy, head = reference(config=FlowRLConfig(ppo_coef=50.0))
    run = result("gradients")["runs"][f"with PPO's loss, micro-batches of {size}"]
    assert_same(run["policy"], policy)
    assert_same(run["head"], head)
    assert run["metrics"]["loss"] == pytest.approx(loss, rel=1e-5)
    assert any((policy[name] - base[1][name]).norm() > 0.01 * base[1][name].norm() for name in policy)


@pytest.mark.parametrize("name", ["llama", "llama, fused", "llama, fused and padded"])
def test_another_architecture_with_tied_embeddings_and_fused_log_probs(
    name: str, result: Callable[[str], Any], reference: Callable[..., tuple]
) -> None:
    """The fused path computes log-probs without logits; ``log_z`` needs none."""
    loss, policy, head = reference("llama")
    run = result("gradients")["runs"][name]
    assert_same(run["policy"], policy)
    assert_same(run["head"], head)
    assert run["metrics"]["loss"] == pytest.approx(loss, rel=1e-5)


def test_ulysses_sequence_parallel(result: Callable[[str], Any], reference: Callable[..., tuple]) -> None:
    """Each rank has a slice of every packed micro-batch.

    The exchange of attention heads is flash attention's alone, which needs a GPU. In a model whose attention adds
    nothing, everything else, the pooling and the gradient's scale above all, has to be right without it.
    """
    loss, policy, head = reference("pointwise")
    run = result("gradients")["runs"]["ulysses"]
    for gradients in (run["policy"], policy):
        for name in [name for name in gradients if "o_proj" in name]:  # its gradient is all that attention touches
            del gradients[name]
    assert_same(run["policy"], policy)
    assert_same(run["head"], head)
    assert run["metrics"]["loss"] == pytest.approx(loss, rel=1e-5)


def test_bfloat16_policy_with_float32_head(result: Callable[[str], Any], base: tuple) -> None:
    _, policy, head = base
    run = result("gradients")["runs"]["bfloat16"]
    for actual, desired in ((run["policy"], policy), (run["head"], head)):
        actual, desired = (torch.cat([g[name].double().flatten() for name in desired]) for g in (actual, desired))
        assert torch.cosine_similarity(actual, desired, dim=0) > 0.999
    assert run["log_z dtypes"] == {torch.float32}
    assert {tensor.dtype for tensor in run["head"].values()} == {torch.float32}


def test_head_starts_alike_on_any_number_of_ranks(results_1: dict, results_2: dict) -> None:
    one, two = (results["gradients"]["head"] for results in (results_1, results_2))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)
