"""``FlowRLConfig``: defaults and presets, and one clear line for everything that it refuses."""

from __future__ import annotations

import math
import pickle
import subprocess
import sys
from dataclasses import FrozenInstanceError, asdict, fields

import pytest
from omegaconf import OmegaConf

from recipe.flowrl.config import PRESETS, FlowRLConfig, FlowRLConfigError

NUMBERS = (
    *("beta", "clip_low", "clip_high", "clamp_max", "gap_clip_low", "gap_clip_high", "ppo_coef"),
    *("partition_dropout", "partition_lr", "partition_weight_decay"),
)
BOOLEANS = ("partition_detach", "partition_clip_separately")
COUNTS = ("partition_depth", "partition_width")
CHOICES = ("length_normalization", "importance_weight", "importance_ratio")
NULLABLE = ("gap_clip_low", "gap_clip_high", "partition_width", "partition_lr", "partition_weight_decay")

WRONG_TYPES = (
    [(name, value) for name in NUMBERS for value in ("1", True, [1.0], math.nan, math.inf, 10**400)]
    + [(name, value) for name in BOOLEANS for value in (1, 0.0, "true", None)]
    + [(name, value) for name in COUNTS for value in (2.0, "2", True)]
    + [(name, value) for name in CHOICES for value in (1, True, None, ["clip"])]
    + [(name, None) for name in (*NUMBERS, *COUNTS) if name not in NULLABLE]
)
WRONG_VALUES = [
    ("beta", 0, "> 0"),
    ("beta", -15.0, "> 0"),
    ("length_normalization", "mean", "'log_probs' | 'residual' | 'residual_root' | 'none'"),
    ("importance_weight", "clamp", "'clip' | 'clamp_max' | 'none'"),
    ("clip_low", 1.0, "in [0, 1)"),
    ("clip_low", -0.1, "in [0, 1)"),
    ("clip_high", -0.1, ">= 0"),
    ("clamp_max", 0.0, "> 0"),
    ("importance_ratio", "mean", "'sequence' | 'geometric_mean'"),
    ("gap_clip_low", 0.0, "> 0, or null (not clipped)"),
    ("ppo_coef", -1.0, ">= 0"),
    ("partition_depth", 0, "an integer >= 1"),
    ("partition_width", 0, "an integer >= 1, or null (the model's hidden size)"),
    ("partition_dropout", 1.0, "in [0, 1)"),
    ("partition_lr", -1e-4, ">= 0, or null (the policy's)"),
    ("partition_weight_decay", -0.1, ">= 0, or null (the policy's)"),
]


def refusal(values: object, **kwargs: str) -> str:
    with pytest.raises(FlowRLConfigError) as caught:
        FlowRLConfig.from_mapping(values, **kwargs)
    assert isinstance(caught.value, ValueError) and "\n" not in str(caught.value)
    return str(caught.value)


def test_the_defaults_are_the_preset_paper():
    assert asdict(FlowRLConfig.preset("paper")) == {
        "beta": 15.0,
        "length_normalization": "log_probs",
        "importance_weight": "clip",
        "clip_low": 0.2,
        "clip_high": 0.2,
        "clamp_max": 10.0,
        "importance_ratio": "sequence",
        "gap_clip_low": None,
        "gap_clip_high": None,
        "ppo_coef": 0.0,
        "partition": "learned",
        "partition_constant": 0.0,
        "partition_depth": 3,
        "partition_width": None,
        "partition_dropout": 0.0,
        "partition_lr": 1e-4,
        "partition_weight_decay": 0.0,
        "partition_detach": False,
        "partition_clip_separately": False,
    }
    assert FlowRLConfig() == FlowRLConfig.from_mapping({}) == FlowRLConfig.preset("paper")


def test_the_preset_as_released_differs_where_the_released_code_does():
    paper, released = asdict(FlowRLConfig.preset("paper")), asdict(FlowRLConfig.preset("as_released"))
    assert {name: value for name, value in released.items() if value != paper[name]} == {
        "importance_weight": "clamp_max",
        "partition_dropout": 0.1,
        "partition_lr": None,
        "partition_weight_decay": None,
    }
    assert released["clamp_max"] == 10.0


def test_an_unknown_preset_is_refused():
    with pytest.raises(FlowRLConfigError, match=r"^flowrl.preset: got 'papr' \(str\) \(did you mean 'paper'\?\);") as e:
        FlowRLConfig.preset("papr")
    assert all(repr(name) in str(e.value) for name in PRESETS)


@pytest.mark.parametrize(("name", "value"), WRONG_TYPES)
def test_a_wrong_type_is_refused(name, value):
    message = refusal({name: value})
    assert message.startswith(f"flowrl.{name}: got {repr(value)[:50]}") and "; allowed: " in message
    assert type(value).__name__ in message


@pytest.mark.parametrize(("name", "value", "allowed"), WRONG_VALUES)
def test_a_wrong_value_is_refused(name, value, allowed):
    message = refusal({name: value}, where="actor.flowrl")
    assert message.startswith(f"actor.flowrl.{name}: got {value!r} ") and message.endswith(allowed)
    with pytest.raises(FlowRLConfigError, match=f"^flowrl.{name}: "):
        FlowRLConfig(**{name: value})


def test_an_unknown_key_is_refused_with_the_nearest_known_one():
    message = refusal({"beta": 1.0, "partition_layers": 3, "lr": 0})
    assert message.startswith("flowrl.partition_layers: unknown key (its value: 3 (int))")
    assert "did you mean 'partition_" in message and all(option.name in message for option in fields(FlowRLConfig))
    assert "did you mean 'length_normalization'?" in refusal({"length_normalize": True})
    assert "did you mean" not in refusal({"zzz": 1}) and refusal({3: 1}).startswith("flowrl.3: unknown key")


@pytest.mark.parametrize("values", [None, 15.0, "beta=15", [("beta", 15)]])
def test_what_is_not_a_mapping_is_refused(values):
    assert refusal(values).startswith(f"flowrl: got {values!r} ")


def test_a_long_value_is_shown_in_one_short_line():
    assert len(refusal({"beta": ["word\n" * 1000]})) < 150


@pytest.mark.parametrize("mapping", [dict, OmegaConf.create], ids=["dict", "omegaconf"])
def test_values_are_taken_over_and_integers_become_floats(mapping):
    given = {"beta": 8, "clip_low": 0, "partition_lr": None, "partition_width": 64, "importance_weight": "none"}
    config = FlowRLConfig.from_mapping(mapping(given))
    assert asdict(config) == asdict(FlowRLConfig()) | given
    assert type(config.beta) is type(config.clip_low) is float and type(config.partition_width) is int
    assert pickle.loads(pickle.dumps(config)) == config


def test_it_is_frozen():
    with pytest.raises(FrozenInstanceError):
        FlowRLConfig().beta = 1.0


def test_importing_it_loads_neither_torch_nor_verl():
    code = "import sys, recipe.flowrl.config; assert not {'torch', 'verl', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=20)
