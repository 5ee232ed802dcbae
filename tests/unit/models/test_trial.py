"""What a small copy tells of a family's paths: known faults are found, and families without any have none."""

import dataclasses

import pytest
import torch
from published_configs import PUBLISHED

from recipe.flowrl.common.errors import UserError
from recipe.flowrl.models.trial import EAGER, SDPA, Trial, trial_of

FAULTS: dict[str, set[str]] = {
    "gemma-2-2b": {SDPA, "fused"},  # softcaps of attention and of logits
    "granite-3.3-8b": {"fused"},  # scaled logits
    "granite-4.0-h-tiny": {"packed", "fused"},  # Mamba's state goes on from one sequence to the next
    "gpt-oss-20b, dequantised": {SDPA, "flash_attention_2", "packed"},  # its eager masks know no positions
    "Qwen3.5-4B, the language model alone": {"packed"},  # linear attention's state
    "Falcon-7B": {"packed", "fused"},
    "bloom-560m": {SDPA, "flash_attention_2", "packed", "fused"},
}


def faults(trial: Trial) -> set[str]:
    attention = EAGER if trial.attention(SDPA) else SDPA
    found = {name: trial.attention(name) for name in (SDPA, "flash_attention_2")}
    found |= {"packed": trial.packed(attention), "padded": trial.padded(attention), "fused": trial.fused()}
    return {name for name, fault in found.items() if fault}


@pytest.mark.parametrize("name", PUBLISHED)
def test_faults_of_published_models(name: str) -> None:
    assert faults(trial_of(PUBLISHED[name])) == FAULTS.get(name, set())


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"model_type": "cohere", "logit_scale": 0.0625}, "fused"),
        ({"model_type": "phi"}, "fused"),  # the head has a bias
        ({"model_type": "nanochat"}, "fused"),
        ({"model_type": "llama4_text"}, "packed"),  # chunks
        ({"model_type": "qwen3_next"}, "packed"),
        ({"model_type": "jamba"}, "packed"),
    ],
)
def test_families_that_nobody_listed(change: dict, fault: str) -> None:
    assert fault in faults(trial_of(change))


def test_it_is_the_value_that_counts_not_the_family() -> None:
    plain = {**PUBLISHED["gemma-2-2b"], "attn_logit_softcapping": None, "final_logit_softcapping": None}
    assert faults(trial_of(plain)) == set()
    assert faults(trial_of({**PUBLISHED["granite-3.3-8b"], "logits_scaling": 1.0})) == set()


def test_sequences_longer_than_the_window_are_among_those_tried() -> None:
    trial = trial_of(PUBLISHED["gemma-3-1b-it"])
    window = trial._plain.config.sliding_window
    assert any(len(row) > window for row in trial.expected)


def test_a_nan_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    trial = Trial(PUBLISHED["Qwen2.5-7B"])
    with torch.no_grad():
        trial._plain.lm_head.weight[3] = torch.nan
    assert "nan" in trial.fused()


def test_no_small_model_is_an_error_of_its_own() -> None:
    with pytest.raises(UserError, match="no_such_model"):
        trial_of({"model_type": "no_such_model"}).expected  # noqa: B018


def test_random_numbers_of_the_process_stay_as_they_are() -> None:
    state = torch.get_rng_state()
    Trial(PUBLISHED["Qwen2.5-7B"]).packed(SDPA)
    assert torch.equal(torch.get_rng_state(), state)
    assert dataclasses.is_dataclass(Trial)
