"""The options of FlowRL as one frozen, typed, validated dataclass.

Imports the standard library only, so that a wrong value is refused in milliseconds, before Ray starts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from math import log
from typing import Any, Literal, get_args

from recipe.flowrl.common.errors import UserError
from recipe.flowrl.common.rules import (
    BOOLEAN,
    COUNT,
    FINITE,
    FRACTION,
    NOT_NEGATIVE,
    POSITIVE,
    Rule,
    guess,
    one_of,
    show,
)

ImportanceWeight = Literal["clip", "clamp_max", "none"]
ImportanceRatio = Literal["sequence", "geometric_mean"]
Partition = Literal["learned", "constant", "group_mean"]
LengthNormalization = Literal["log_probs", "residual", "residual_root", "none"]

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


SATURATED = log(1000)
"""Log of the odds, in nats, from which on the objective's target is called saturated. From a success rate of 20% on,
they leave less than half a percent of wrong answers: a larger beta would change nothing that can be seen, and the pull
to the reference is weak against the noise of an update."""


class FlowRLConfigError(UserError, ValueError):
    """A FlowRL option was refused. One line: the key, the value given, what is allowed."""

    def __init__(self, key: str, problem: str, allowed: str) -> None:
        super().__init__(f"{key}: {problem}; allowed: {allowed}")


def _option(default: Any, rule: Rule) -> Any:
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
        beta: inverse temperature of the reward, > 0.
        length_normalization: what is divided by the response length |y|. "log_probs": log pi and log pi_ref, as in the
            paper; "residual": all of the residual, log Z and beta r included, so that the target is
            pi_ref exp(beta r) / Z whatever the lengths; "residual_root": the same by sqrt(|y|), for the same target and
            with a gradient whose size does not depend on the lengths, as GRPO's; "none": nothing, for the same target.
        importance_weight: "clip" to [1 - clip_low, 1 + clip_high]; "clamp_max": min(ratio, clamp_max); "none": 1.
        clip_low, clip_high: used by "clip" only.
        clamp_max: used by "clamp_max" only.
        importance_ratio: "sequence" = exp(sum_t log pi/pi_old); "geometric_mean" = exp(mean_t log pi/pi_old).
        gap_clip_low, gap_clip_high: the residual at pi_old is clipped to [-gap_clip_low, gap_clip_high], as in GFlowRL
            (arXiv 2607.13394); None = not on that side.
        ppo_coef: adds so much of verl's policy loss (``actor.policy_loss``, PPO's by default) on the same advantages.

    Partition function:
        partition: "learned" = the head; "constant" = ``partition_constant``, 0 removes log Z; "group_mean" = what makes
            the loss of the prompt's rollouts least at pi_old, a mean of beta r - log pi_old/pi_ref, without gradient.
            All that follows belongs to the head, but for the constant.
        partition_constant: log Z, in nats; used by "constant" only.
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

    beta: float = _option(15.0, POSITIVE)
    length_normalization: LengthNormalization = _option("log_probs", one_of(get_args(LengthNormalization)))
    importance_weight: ImportanceWeight = _option("clip", one_of(get_args(ImportanceWeight)))
    clip_low: float = _option(0.2, FRACTION)
    clip_high: float = _option(0.2, NOT_NEGATIVE)
    clamp_max: float = _option(10.0, POSITIVE)
    importance_ratio: ImportanceRatio = _option("sequence", one_of(get_args(ImportanceRatio)))
    gap_clip_low: float | None = _option(None, POSITIVE.or_none("not clipped"))
    gap_clip_high: float | None = _option(None, POSITIVE.or_none("not clipped"))
    ppo_coef: float = _option(0.0, NOT_NEGATIVE)

    partition: Partition = _option("learned", one_of(get_args(Partition)))
    partition_constant: float = _option(0.0, FINITE)
    partition_depth: int = _option(3, COUNT)
    partition_width: int | None = _option(None, COUNT.or_none("the model's hidden size"))
    partition_dropout: float = _option(0.0, FRACTION)
    partition_lr: float | None = _option(1e-4, NOT_NEGATIVE.or_none("the policy's"))
    partition_weight_decay: float | None = _option(0.0, NOT_NEGATIVE.or_none("the policy's"))
    partition_detach: bool = _option(False, BOOLEAN)
    partition_clip_separately: bool = _option(False, BOOLEAN)

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
                "flowrl.preset", f"got {show(name)}{guess(name, PRESETS)}", " | ".join(map(repr, PRESETS))
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
            raise FlowRLConfigError(where, f"got {show(mapping)}", "a mapping from option to value")
        _check(mapping, where)
        return cls(**mapping)


def refuse_additions(algorithm: Mapping[str, Any]) -> None:
    """Refuse, of what this recipe adds to verl's ``algorithm`` section, what is for verl's algorithms only.

    Args:
        algorithm: the section of a run whose algorithm is FlowRL.

    Raises:
        UserError: such an option is set.
    """
    for key in ("kl_matched_beta", "dmpo_weight", "reference_reset_steps"):
        if algorithm[key] is not None:
            raise UserError(f"algorithm.{key}={algorithm[key]}: for verl's algorithms, not for FlowRL's; unset it")


def check_replay(algorithm: Mapping[str, Any], flowrl: FlowRLConfig | None) -> None:
    """Refuse earlier rollouts (``algorithm.replay``) where the objective doesn't hold whoever drew them.

    Args:
        algorithm: the section of a run.
        flowrl: its objective; None for verl's algorithms.

    Raises:
        UserError: they are asked for, and the objective is a policy gradient, or can't be zero for all answers.
    """
    if algorithm["replay"]["share"] is None:
        return
    asked = f"algorithm.replay.share={algorithm['replay']['share']}"
    if flowrl is None:
        raise UserError(
            f"{asked}: this algorithm is a policy gradient, which rollouts of earlier policies bias: unset it, or "
            "choose a trajectory-balance objective, such as algo=tb_replay"
        )
    if flowrl.ppo_coef:
        raise UserError(
            f"{asked} with flowrl.ppo_coef={flowrl.ppo_coef:g}: PPO's loss is a policy gradient, which rollouts of "
            "earlier policies bias: unset one"
        )
    if flowrl.partition == "constant":
        raise UserError(
            f"{asked} with flowrl.partition=constant: with a log Z that isn't the target's the residual can't be zero "
            "for all answers, and who drew them decides what is learned: set flowrl.partition=group_mean or learned"
        )
    if flowrl.partition == "group_mean" and (algorithm.get("rollout_correction") or {}).get("bypass_mode"):
        raise UserError(
            f"{asked} with algorithm.rollout_correction.bypass_mode=true: log Z, the group's mean, would be that of "
            "the policy which drew the group steps ago: unset one, or set flowrl.partition=learned"
        )


def _check(values: Mapping[Any, Any], where: str) -> None:
    rules = {option.name: option.metadata["rule"] for option in fields(FlowRLConfig)}
    for name, value in values.items():
        if name not in rules:
            problem = f"unknown key (its value: {show(value)}){guess(name, rules)}"
            raise FlowRLConfigError(f"{where}.{name}", problem, ", ".join(rules))
        if not rules[name].accepts(value):
            raise FlowRLConfigError(f"{where}.{name}", f"got {show(value)}", rules[name].allowed)
