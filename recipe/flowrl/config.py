"""The options of FlowRL as one frozen, typed, validated dataclass.

Imports the standard library only, so that a wrong value is refused in milliseconds, before Ray starts.
"""

from __future__ import annotations

import difflib
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal, get_args

ImportanceWeight = Literal["clip", "clamp_max", "none"]
ImportanceRatio = Literal["sequence", "geometric_mean"]

PRESETS: dict[str, dict[str, Any]] = {
    # arXiv 2509.15207v3: the defaults below.
    "paper": {},
    # The recipe published after the paper: an upper bound on the weight only, and the head inside the policy, hence
    # with dropout in the update and in the policy's optimizer group.
    "as_released": {
        "importance_weight": "clamp_max",
        "clamp_max": 10.0,
        "partition_dropout": 0.1,
        "partition_lr": None,
        "partition_weight_decay": None,
    },
}
"""Name -> the fields in which a preset differs from the defaults."""


class FlowRLConfigError(ValueError):
    """A FlowRL option was refused. One line: the key, the value given, what is allowed."""

    def __init__(self, key: str, problem: str, allowed: str) -> None:
        super().__init__(f"{key}: {problem}; allowed: {allowed}")


def _unchanged(value: Any) -> Any:
    return value


@dataclass(frozen=True)
class _Rule:
    """What a field accepts, in code and in words, and the type it is stored as."""

    allowed: str
    accepts: Callable[[Any], bool]
    convert: Callable[[Any], Any] = _unchanged

    def or_none(self, meaning: str) -> _Rule:
        return _Rule(
            f"{self.allowed}, or null ({meaning})",
            lambda value: value is None or self.accepts(value),
            lambda value: None if value is None else self.convert(value),
        )


def _is_number(value: Any) -> bool:
    # bool is an int in Python. The comparison also refuses nan, infinities and integers too large for a float.
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def _number(interval: str, inside: Callable[[float], bool]) -> _Rule:
    return _Rule(f"a finite number {interval}", lambda value: _is_number(value) and inside(value), float)


def _one_of(literal: Any) -> _Rule:
    names = get_args(literal)
    return _Rule(" | ".join(map(repr, names)), lambda value: value in names)


_BOOLEAN = _Rule("true | false", lambda value: isinstance(value, bool))
_COUNT = _Rule("an integer >= 1", lambda value: isinstance(value, int) and not isinstance(value, bool) and value >= 1)
_POSITIVE = _number("> 0", lambda value: value > 0)
_NOT_NEGATIVE = _number(">= 0", lambda value: value >= 0)
_FRACTION = _number("in [0, 1)", lambda value: 0 <= value < 1)


def _option(default: Any, rule: _Rule) -> Any:
    return field(default=default, metadata={"rule": rule})


@dataclass(frozen=True)
class FlowRLConfig:
    """Options of the FlowRL objective and of its partition function log Z(x).

    Fixed by the paper (arXiv 2509.15207v3): ``beta`` 15; both log-probs divided by the response length; a detached
    importance weight pi / pi_old of the whole sequence (a product over tokens, not a mean), clipped to
    [1 - eps, 1 + eps]; log Z as a 3-layer MLP as wide as the model, trained jointly with the policy.

    Our choice, because the paper does not say: eps 0.2 on both sides (PPO's); no dropout in the head (it would add
    noise to the residual of every sequence); the head's learning rate 1e-4 and no weight decay (the policy's 1e-6 is
    meant for pretrained weights, the head starts from random ones); one global norm for clipping the gradients of
    policy and head. That the gradient of log Z reaches the policy follows the released code.

    Objective:
        beta: inverse temperature on the group-normalised reward, > 0.
        length_normalize: divide log pi and log pi_ref by the response length |y|.
        importance_weight: "clip" to [1 - clip_low, 1 + clip_high]; "clamp_max": min(ratio, clamp_max); "none": 1.
        clip_low, clip_high: used by "clip" only.
        clamp_max: used by "clamp_max" only.
        importance_ratio: "sequence" = exp(sum_t log pi/pi_old); "geometric_mean" = exp(mean_t log pi/pi_old).

    Partition function:
        partition_depth: linear layers of the MLP.
        partition_width: width of its hidden layers; None = the model's hidden size.
        partition_dropout: probability, in [0, 1).
        partition_lr: its learning rate; None = the policy's; 0 leaves the head at its initialisation.
        partition_weight_decay: its weight decay; None = the policy's.
        partition_detach: True = the gradient of log Z does not reach the policy's trunk.
        partition_clip_separately: True = the gradient norms of head and policy are clipped one by one.

    Raises:
        FlowRLConfigError: a value of the wrong type or out of range. Integers are taken for floats; booleans and
            strings are not taken for numbers.
    """

    beta: float = _option(15.0, _POSITIVE)
    length_normalize: bool = _option(True, _BOOLEAN)
    importance_weight: ImportanceWeight = _option("clip", _one_of(ImportanceWeight))
    clip_low: float = _option(0.2, _FRACTION)
    clip_high: float = _option(0.2, _NOT_NEGATIVE)
    clamp_max: float = _option(10.0, _POSITIVE)
    importance_ratio: ImportanceRatio = _option("sequence", _one_of(ImportanceRatio))

    partition_depth: int = _option(3, _COUNT)
    partition_width: int | None = _option(None, _COUNT.or_none("the model's hidden size"))
    partition_dropout: float = _option(0.0, _FRACTION)
    partition_lr: float | None = _option(1e-4, _NOT_NEGATIVE.or_none("the policy's"))
    partition_weight_decay: float | None = _option(0.0, _NOT_NEGATIVE.or_none("the policy's"))
    partition_detach: bool = _option(False, _BOOLEAN)
    partition_clip_separately: bool = _option(False, _BOOLEAN)

    def __post_init__(self) -> None:
        _check({option.name: getattr(self, option.name) for option in fields(self)}, "flowrl")
        for option in fields(self):  # an integer given for a float becomes one
            value = option.metadata["rule"].convert(getattr(self, option.name))
            object.__setattr__(self, option.name, value)

    @classmethod
    def preset(cls, name: str) -> FlowRLConfig:
        """The configuration called ``name``: "paper" or "as_released" (see ``PRESETS``).

        Raises:
            FlowRLConfigError: there is no such preset.
        """
        if not isinstance(name, str) or name not in PRESETS:
            raise FlowRLConfigError(
                "flowrl.preset", f"got {_show(name)}{_guess(name, PRESETS)}", " | ".join(map(repr, PRESETS))
            )
        return cls(**PRESETS[name])

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any], where: str = "flowrl") -> FlowRLConfig:
        """Build from a mapping such as a section of the Hydra config; what is left out keeps its default.

        Args:
            mapping: field name -> value.
            where: path of the section, put before the key in messages.

        Raises:
            FlowRLConfigError: not a mapping, an unknown key, a wrong type or a wrong value.
        """
        if not isinstance(mapping, Mapping):
            raise FlowRLConfigError(where, f"got {_show(mapping)}", "a mapping from option to value")
        _check(mapping, where)
        return cls(**mapping)


def _check(values: Mapping[Any, Any], where: str) -> None:
    rules = {option.name: option.metadata["rule"] for option in fields(FlowRLConfig)}
    for name, value in values.items():
        if name not in rules:
            problem = f"unknown key (its value: {_show(value)}){_guess(name, rules)}"
            raise FlowRLConfigError(f"{where}.{name}", problem, ", ".join(rules))
        if not rules[name].accepts(value):
            raise FlowRLConfigError(f"{where}.{name}", f"got {_show(value)}", rules[name].allowed)


def _show(value: Any) -> str:
    """``value`` on one line, with its type: 15 and '15' must not look alike."""
    text = " ".join(repr(value).split())
    return f"{text if len(text) <= 60 else text[:57] + '...'} ({type(value).__name__})"


def _guess(name: Any, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(str(name), known, n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""
