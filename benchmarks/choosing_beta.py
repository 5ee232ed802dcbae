"""The pictures of docs/choosing_beta.md: ``python -m benchmarks.choosing_beta [out=docs/images]``, two minutes.

The first is formulas (recipe/flowrl/preflight/target.py), the second root finding, the third a simulation with the
objective itself on policies that are tables. Nothing in them is a language model.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import matplotlib
import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from benchmarks.pictures import save_picture
from recipe.flowrl.common.project import PROJECT
from recipe.flowrl.config import FlowRLConfig
from recipe.flowrl.objective import flowrl_loss
from recipe.flowrl.preflight.target import success_rate

BEFORE = 0.2
"""The reference's success rate in the first two pictures."""
WHOLE = FlowRLConfig(length_normalization="residual", partition="group_mean")


# ---- the success rate of the target ------------------------------------------------------------------------------


def draw_success_rates() -> Figure:
    """P(right) of the target against beta."""
    betas = np.geomspace(1e-4, 40, 160)
    figure, axes = _figure("β", "P(right) of the target", log=True)
    for length, color in ((10, "tab:blue"), (100, "tab:cyan"), (4000, "tab:purple")):
        rates = [success_rate(BEFORE, FlowRLConfig(beta=b), True, 8, length) for b in betas]
        axes.plot(betas, rates, color=color, label=f"flowrl, answers of {length:,} tokens")
    rates = [success_rate(BEFORE, replace(WHOLE, beta=b), False, 8, 1) for b in betas]
    axes.plot(betas, rates, color="tab:orange", linewidth=2.5, label="flowrl_plus, of any lengths")
    axes.axvline(15, color="0.4", linestyle=":")
    axes.text(13.5, 0.5, "the paper's β", rotation=90, color="0.4", va="center", ha="right", fontsize=8)
    axes.axhline(BEFORE, color="0.7", linewidth=0.8)
    axes.text(1.1e-4, BEFORE - 0.045, "the reference", color="0.5", fontsize=8)
    axes.set_ylim(0, 1.03)
    axes.legend(fontsize=8, frameon=False, loc="lower left", bbox_to_anchor=(0.0, 1.0), ncol=2)
    return figure


# ---- the length of right answers ---------------------------------------------------------------------------------


def favour(beta: float, config: FlowRLConfig) -> tuple[float, float]:
    """P(right), and how many times as often a right answer has 20 tokens as 10: in the reference, as often."""
    lengths = np.array([10.0, 20.0, 15.0])
    before = np.array([BEFORE / 2, BEFORE / 2, 1 - BEFORE])
    reward = np.array([1.0, 1.0, 0.0])
    exponent = lengths if config.length_normalization == "log_probs" else np.ones(3)
    low, high = -1.0, beta + 1.0
    for _ in range(200):
        log_z = (low + high) / 2
        target = before * np.exp(exponent * (beta * reward - log_z))
        low, high = (log_z, high) if target.sum() > 1 else (low, log_z)
    return float(target[:2].sum()), float(target[1] / target[0])


def draw_lengths() -> Figure:
    """The favour that long right answers get, against P(right)."""
    figure, axes = _figure("P(right) of the target", "right answers: 20 tokens to 10")
    for config, betas, color, label in (
        (FlowRLConfig(), np.geomspace(1e-3, 3, 200), "tab:blue", "flowrl: the log-probs are divided by the length"),
        (WHOLE, np.geomspace(1e-2, 12, 200), "tab:orange", "flowrl_plus: the whole residual is"),
    ):
        points = [favour(beta, config) for beta in betas]
        axes.plot(*zip(*points, strict=True), color=color, linewidth=2, label=label)
    axes.set_ylim(0.8, 3)
    axes.legend(fontsize=8, frameon=False)
    return figure


# ---- what training does ------------------------------------------------------------------------------------------

PROMPTS, ANSWERS, RIGHT, LENGTH, ROLLOUTS, STEPS = 64, 64, 16, 10, 8, 3000
MASK = torch.ones(PROMPTS * ROLLOUTS, LENGTH)
IN_TOKENS = (0, LENGTH - 1)


@dataclass(frozen=True)
class Arm:
    """A curve: its objective (None: GRPO) and whether the reward is normalised in groups."""

    label: str
    color: str
    config: FlowRLConfig | None
    normalised: bool = True


def _published(beta: float) -> FlowRLConfig:
    return FlowRLConfig(beta=beta, partition="group_mean")


ARMS = (
    Arm("GRPO", "0.3", None),
    Arm("flowrl β = 15", "tab:purple", _published(15.0)),
    Arm("flowrl β = 1", "tab:blue", _published(1.0)),
    Arm("flowrl β = 0.2", "tab:cyan", _published(0.2)),
    Arm("flowrl_plus β = 5", "tab:red", replace(WHOLE, beta=5.0), normalised=False),
    Arm("flowrl_plus β = 3", "tab:orange", replace(WHOLE, beta=3.0), normalised=False),
)


def simulate(arm: Arm, steps: int = STEPS, every: int = 20) -> list[tuple[float, float]]:
    """P(right) and the effective number of right answers (exp of their entropy), means over prompts, along training."""
    generator = torch.Generator().manual_seed(0)
    reference = torch.randn(PROMPTS, ANSWERS, generator=generator).log_softmax(-1)
    logits = reference.clone().requires_grad_()
    optimizer = torch.optim.Adam([logits], lr=0.02)
    right = torch.arange(ANSWERS) < RIGHT
    points = []
    for step in range(steps + 1):
        log_pi = logits.log_softmax(-1)
        if step % every == 0:
            points.append(_measure(log_pi.detach(), right))
        answers = torch.multinomial(log_pi.detach().exp(), ROLLOUTS, replacement=True, generator=generator)
        log_prob, ref = log_pi.gather(1, answers), reference.gather(1, answers)
        reward = right[answers].float()
        if arm.normalised:
            reward = (reward - reward.mean(1, keepdim=True)) / (reward.std(1, keepdim=True) + 1e-6)
        if arm.config is None:
            loss = -(reward * log_prob).mean()
        else:
            loss = _flowrl(log_prob, ref, reward, arm.config)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return points


def _flowrl(log_prob: Tensor, ref: Tensor, reward: Tensor, config: FlowRLConfig) -> Tensor:
    length = LENGTH if config.length_normalization == "log_probs" else 1
    log_z = (config.beta * reward - (log_prob.detach() - ref) / length).mean(1, keepdim=True).expand_as(reward)

    def tokens(values: Tensor) -> Tensor:  # the loss takes their sum
        return torch.nn.functional.pad(values.reshape(-1, 1), IN_TOKENS)

    loss, _ = flowrl_loss(
        log_prob=tokens(log_prob),
        old_log_prob=tokens(log_prob.detach()),
        ref_log_prob=tokens(ref),
        log_z=log_z.reshape(-1),
        reward=reward.reshape(-1),
        response_mask=MASK,
        config=config,
    )
    return loss


def _measure(log_pi: Tensor, right: Tensor) -> tuple[float, float]:
    among = log_pi[:, right].log_softmax(-1)
    entropy = -(among.exp() * among).sum(-1)
    return log_pi[:, right].exp().sum(-1).mean().item(), entropy.exp().mean().item()


def draw_training() -> Figure:
    """Effective right answers against P(right), one curve an arm."""
    figure, axes = _figure("P(right)", "effective number of right answers, of 16")
    for arm in ARMS:
        points = simulate(arm)
        dashes = {"linestyle": "--", "zorder": 3} if arm.config is None else {}  # it lies under the others
        axes.plot(*zip(*points, strict=True), color=arm.color, label=arm.label, linewidth=1.8, **dashes)
        axes.plot(*points[-1], "o", color=arm.color, markersize=5)
        print(f"{arm.label}: P(right) {points[-1][0]:.3f}, effective {points[-1][1]:.1f}", flush=True)
    axes.plot(*points[0], "k*", markersize=9)
    axes.annotate("the reference", points[0], textcoords="offset points", xytext=(8, -3), fontsize=8)
    axes.set_ylim(0, None)
    axes.legend(fontsize=8, frameon=False, loc="lower left")
    return figure


# ---- files -------------------------------------------------------------------------------------------------------

PICTURES: dict[str, Callable[[], Figure]] = {
    "beta_success_rates": draw_success_rates,
    "beta_lengths": draw_lengths,
    "beta_training": draw_training,
}


def _figure(x: str, y: str, log: bool = False) -> tuple[Figure, matplotlib.axes.Axes]:
    figure = Figure(figsize=(6.2, 3.6), layout="constrained")
    axes = figure.subplots()
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.set_xscale("log" if log else "linear")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    return figure, axes


def main(arguments: list[str]) -> None:
    """Draw all pictures into ``out=DIR``."""
    torch.set_num_threads(1)
    given = dict(argument.split("=", 1) for argument in arguments)
    out = Path(given.pop("out", PROJECT / "docs" / "images"))
    if given:
        raise SystemExit(f"unknown: {', '.join(given)}; there is out=DIR")
    for name, draw in PICTURES.items():
        save_picture(draw(), out / f"{name}.png")
        print(out / f"{name}.png", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
