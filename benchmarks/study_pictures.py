"""Draws the pictures of the exact studies, ``docs/images/*.png``, from their measurements.

python -m benchmarks.study_pictures [NAME ...]
"""

import argparse

from benchmarks.command_line import chosen
from recipe.flowrl.common.files import replacing
from recipe.flowrl.common.project import PROJECT
from recipe.flowrl.compare.frontier_figures import best_figure
from recipe.flowrl.compare.frontier_report import load

PICTURES: dict[str, tuple[str, ...]] = {
    "repeated": ("grpo", "flowrl", "flowrl_beta_1", "flowrl_beta_0.3", "flowrl_plus_beta_5", "grpo_kl_matched_0.3"),
    "change": ("grpo", "flowrl", "flowrl_beta_0.3", "flowrl_plus_beta_3", "grpo_kl_matched_0.3"),
}
"""Study -> the systems in its picture; its report has all."""


def main() -> None:
    """Draw those that are named."""
    for name in chosen(argparse.ArgumentParser(description=__doc__), PICTURES).names:
        _, runs = load(PROJECT / "benchmarks" / name / f"{name}.jsonl")
        picture = PROJECT / "docs" / "images" / f"{name}.png"
        figure = best_figure({system: runs[system] for system in PICTURES[name]})
        with replacing(picture) as temporary:
            # Without the version of the library, the same numbers make the same file.
            figure.savefig(temporary, format="png", dpi=110, metadata={"Software": None})
        print(picture, flush=True)


if __name__ == "__main__":
    main()
