"""Draws the pictures of docs/results.md, ``docs/images/*.png``, from what was measured.

python -m benchmarks.study_pictures [NAME ...]
"""

import argparse
import json
from collections.abc import Callable
from functools import partial

from matplotlib.figure import Figure

from benchmarks.command_line import chosen
from benchmarks.pictures import save_picture
from recipe.flowrl.common.project import PROJECT
from recipe.flowrl.compare.frontier_figures import best_figure, level_figure
from recipe.flowrl.compare.frontier_report import load
from recipe.flowrl.compare.frontier_tables import accuracy_levels
from recipe.flowrl.compare.studies import STUDIES

MEASURED = PROJECT / "benchmarks"

FRONTIERS: dict[str, tuple[str, tuple[str, ...]]] = {
    "repeated": (
        "repeated/repeated.jsonl",
        ("grpo", "flowrl", "flowrl_beta_1", "flowrl_beta_0.3", "flowrl_plus_beta_5", "grpo_kl_matched_0.3"),
    ),
    "change": (
        "change/change_600_steps.jsonl",
        ("grpo", "flowrl_beta_0.3", "flowrl_plus_beta_5", "grpo_kl_matched_0.3"),
    ),
}
"""Picture -> the outcome of an exact study, and the systems that are shown; its report has all. The first has them all,
and a system has the same color in each."""

FIELD = ("repeated/field.jsonl", "repeated/repeated.jsonl")
"""The outcomes that together have all algorithms; of those in both the second has more runs."""

ENDINGS: dict[str, str] = {
    "flowrl_plus, β = 3": "raw_3/flowrl_plus",
    "flowrl_plus, β = 3, data 8 steps old": "stale_8/flowrl_plus",
    "rloo with a KL term of 1/3": "raw_3/rloo",
    "flowrl, β = 1": "raw_1/flowrl",
    "flowrl_plus, β = 5": "raw_5/flowrl_plus",
    "rloo with a KL term of 1/5": "raw_5/rloo",
    "flowrl, β = 3": "raw_3/flowrl",
    "flowrl_plus, β = 15": "raw_15/flowrl_plus",
    "flowrl, β = 15": "raw_15/flowrl",
    "flowrl, β = 3, normalised reward": "norm_3/flowrl",
    "flowrl, β = 15, normalised reward: the paper's": "norm_15/flowrl",
}
"""What the exact test trained, with answers of different lengths -> its directory of runs."""


def frontiers(name: str) -> Figure:
    """The most diversity at each accuracy."""
    outcome, systems = FRONTIERS[name]
    _, runs = load(MEASURED / outcome)
    return best_figure({system: runs[system] for system in systems}, among=FRONTIERS["repeated"][1])


def field() -> Figure:
    """All algorithms at one accuracy."""
    runs = {name: found for outcome in FIELD for name, found in load(MEASURED / outcome)[1].items()}
    usual = {name: runs[name] for name in STUDIES["repeated"].variants}
    return level_figure(usual, max(accuracy_levels(usual).values()))


def distances(directory: str) -> list[float]:
    """KL(policy || its own target) of the worst prompt, nats, a number a run."""
    results = sorted((MEASURED / "distribution_endings" / directory).glob("seed_*/result.json"))
    return [json.loads(result.read_text())["worst"]["kl_policy_target"] for result in results]


def endings() -> Figure:
    """How far from its own target each objective ends."""
    figure = Figure(figsize=(8.6, 4.2), layout="constrained")
    axes = figure.subplots()
    for row, directory in enumerate(ENDINGS.values()):
        found = distances(directory)
        axes.plot(found, [row] * len(found), "o", color="#1f77b4", markersize=6, alpha=0.7)
    axes.set_yticks(range(len(ENDINGS)), list(ENDINGS))
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.set_xlabel("KL(policy ‖ its own target), worst of four prompts, nats; a dot a seed")
    axes.grid(alpha=0.3)
    return figure


PICTURES: dict[str, Callable[[], Figure]] = {
    **{name: partial(frontiers, name) for name in FRONTIERS},
    "field": field,
    "endings": endings,
}


def main() -> None:
    """Draw those that are named."""
    for name in chosen(argparse.ArgumentParser(description=__doc__), PICTURES).names:
        figure, picture = PICTURES[name](), PROJECT / "docs" / "images" / f"{name}.png"
        save_picture(figure, picture)
        print(picture, flush=True)


if __name__ == "__main__":
    main()
