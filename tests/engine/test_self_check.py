"""A run's self-check finds real faults and lets healthy engines pass; rollout server: transformers in float64."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import expected
import pytest
import torch
from omegaconf import OmegaConf
from self_check_scenarios import TEMPERATURE
from tiny import TEMPERATURE as EXPECTED_TEMPERATURE
from tiny import Sequences

from recipe.flowrl.common.secrets import mask
from verl_ext.faults import LogProbsDiffer
from verl_ext.log_prob_variants import LogProbs
from verl_ext.self_check import AFTER_THE_SYNC, AT_THE_START, Answer, _pairs, judgement

Result = Callable[[str], Any]
assert TEMPERATURE == EXPECTED_TEMPERATURE


def config(dtype: str = "float32", **rollout: Any) -> Any:
    settings = {"dtype": dtype, "quantization": None, "logprobs_mode": "processed_logprobs", "name": "vllm"}
    settings |= {"free_cache_engine": True, "temperature": TEMPERATURE, **rollout}
    return OmegaConf.create({"actor_rollout_ref": {"rollout": settings}})


def answers(model: Any, sequences: Sequences, rows: int, replicas: int = 2) -> list[Answer]:
    """What a rollout server with the weights of ``model`` would say."""
    found = []
    for row, (prompt, tokens) in enumerate(zip(sequences.prompts, sequences.responses, strict=True)):
        if row < rows:
            with torch.no_grad():
                log_probs = expected.response_log_probs(model, prompt, tokens)[0]
            found.append(Answer(row % replicas, prompt.tolist(), tokens.tolist(), log_probs.tolist()))
    return found


@pytest.fixture
def judge(result: Result, ranks: int, directory: Path, sequences: Sequences) -> Callable[..., Any]:
    """The judgement of a case at a point, on a server with the model's own weights, or those of ``damage(model)``."""

    def get(
        case: str,
        point: str = AT_THE_START,
        damage: Callable[[Any], None] = lambda model: None,
        dtype: str = "float32",
        family: str = "qwen2",
        **rollout: Any,
    ) -> tuple[str, dict[str, float]]:
        found = [LogProbs(**one) for one in result("self_check")[case]]
        model = expected.load(directory / family)
        damage(model)
        said = answers(model, sequences, 8 * ranks)
        pairs = list(_pairs(said, found, config(dtype, **rollout), point))
        return judgement(pairs, point, TEMPERATURE)

    return get


@pytest.mark.parametrize(
    ("case", "pairs"),
    [
        ("plain", ["rollout"]),
        ("lora", ["packed", "rollout"]),
        ("ulysses", ["packed", "rollout"]),
        ("packed and fused", ["packed", "fused", "rollout"]),
        ("offloaded", ["packed", "fused", "rollout"]),
    ],
)
def test_a_healthy_run_in_float32_goes_on(case: str, pairs: list[str], judge: Callable) -> None:
    """Only what the run uses is compared."""
    line, metrics = judge(case)
    assert line.startswith("self-check at the start: log-probs agree (apart on average, in nats: ")
    assert list(metrics) == [f"actor/self_check/{pair}_{kind}" for pair in pairs for kind in ("mean", "high")]
    assert max(metrics.values()) < 1e-4
    assert mask(line) == line, "nothing in it looks like a secret, which the console would hide"


def slightly(model: Any) -> None:
    """As much as bfloat16 would allow."""
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight.mul_(1.05)


def test_a_healthy_run_in_bfloat16_goes_on(judge: Callable) -> None:
    """Where float32 wouldn't allow as much."""
    _, metrics = judge("bfloat16", dtype="bfloat16")
    assert 1e-4 < max(metrics.values()) < 0.1
    judge("bfloat16", dtype="bfloat16", damage=slightly)
    with pytest.raises(LogProbsDiffer, match="float32 allows"):
        judge("packed and fused", damage=slightly)


def test_sequence_parallel_ranks_compare_packed_sequences_with_single_ones(result: Result, ranks: int) -> None:
    """Padded ones they can't have. The ranks of one sequence speak once."""
    found = result("self_check")["ulysses"]
    assert len(found) == 1
    assert ("one by one" in found[0]["variants"]) == (ranks > 1)


def test_an_attention_that_ignores_the_borders_of_packed_sequences_is_found(judge: Callable) -> None:
    wanted = (
        r"self-check at the start: log-probs packed and padded differ by 0\.\d+ nats a token on average and by \S+ at "
        r"the 95% quantile of \d+ tokens \(float32 allows 0\.0013 and 0\.0063\): this model's attention \(leaky\) "
        r"doesn't keep packed sequences apart, .*: set actor_rollout_ref\.model\.use_remove_padding=false"
    )
    with pytest.raises(LogProbsDiffer, match=wanted):
        judge("leaky attention")


def test_a_softcap_that_the_fused_kernel_leaves_out_is_found(judge: Callable) -> None:
    """The engine refuses such a model; here it was kept from looking."""
    with pytest.raises(
        LogProbsDiffer, match="fused and unfused differ .*set actor_rollout_ref.model.use_fused_kernels=false"
    ):
        judge("lost softcap", family="gemma2")


def forgotten(model: Any) -> None:
    """The server still has the weights from before an update, of one layer."""
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight.mul_(1.5)


def test_weights_that_did_not_reach_the_rollout_server_are_found(judge: Callable) -> None:
    judge("packed and fused", AFTER_THE_SYNC)
    with pytest.raises(
        LogProbsDiffer, match="after the first weight sync: .*set .*rollout.free_cache_engine=false"
    ) as e:
        judge("packed and fused", AFTER_THE_SYNC, forgotten)
    assert "\n" not in str(e.value) and mask(str(e.value)) == str(e.value)
    with pytest.raises(LogProbsDiffer, match="the weight sync loses or garbles weights: docs/faults.md"):
        judge("packed and fused", AFTER_THE_SYNC, forgotten, free_cache_engine=False)
    with pytest.raises(LogProbsDiffer, match="compute this model differently.*attn_implementation=eager"):
        judge("packed and fused", AT_THE_START, forgotten)


def test_one_bad_replica_among_good_ones_is_named(
    result: Result, ranks: int, directory: Path, sequences: Sequences
) -> None:
    good, bad = (expected.load(directory / "qwen2") for _ in range(2))
    forgotten(bad)
    said = [answers(model, sequences, 8 * ranks) for model in (good, bad)]
    mixed = [said[good_or_bad.replica == 1][row] for row, good_or_bad in enumerate(said[0])]
    found = [LogProbs(**one) for one in result("self_check")["packed and fused"]]
    with pytest.raises(LogProbsDiffer, match="log-probs of rollout server 1 and trainer"):
        judgement(list(_pairs(mixed, found, config(), AFTER_THE_SYNC)), AFTER_THE_SYNC, TEMPERATURE)
