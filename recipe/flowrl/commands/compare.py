"""Trains algorithms alike, several times, and compares them."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recipe.flowrl.common import rules
from recipe.flowrl.common.command_line import Command, as_argument, option, overrides
from recipe.flowrl.common.errors import UserError
from recipe.flowrl.common.rules import Rule
from recipe.flowrl.compare.studies import STUDIES, ExactStudy, Study


def _of_study(name: str, doc: str, rule: Rule) -> Any:
    """An option whose default is the study's."""
    values = {study: as_argument(getattr(facts, name)) for study, facts in STUDIES.items()}
    default = ", ".join(f"{value} ({study})" for study, value in values.items())
    if len(set(values.values())) == 1:
        default = next(iter(values.values()))
    return option(
        doc,
        value=getattr(Study, name),
        rule=rule,
        fill=lambda given: getattr(STUDIES[given.study], name),
        default=default,
    )


@dataclass(frozen=True)
class Options:
    """A study, and what is different in it. Raises UserError for an algorithm that the study doesn't have."""

    study: str = option("Which study.", value="countdown", rule=rules.one_of(STUDIES))
    algos: tuple[str, ...] = option(
        "Which of its algorithms.",
        fill=lambda given: tuple(STUDIES[given.study].variants),
        value=(),
        default="all of the study",
    )
    seeds: tuple[int, ...] = _of_study(
        "seeds", "Seeds of data order and the head's weights; each algorithm is run with each.", rules.COUNT_OR_ZERO
    )
    lrs: tuple[float, ...] = _of_study(
        "lrs", "Learning rates; several are tried on the first seed, and each algorithm's best is used.", rules.POSITIVE
    )
    steps: int = _of_study("steps", "Training steps of each run.", rules.COUNT)
    puzzles: int = _of_study("puzzles", "Held-out puzzles of the evaluation.", rules.COUNT)
    samples: int = _of_study("samples", "Answers to each puzzle, at each temperature.", rules.COUNT)
    jobs: int = _of_study("jobs", "Runs side by side.", rules.COUNT)
    dir: Path = option("Directory of the runs and of STUDY.json and STUDY.html.", value=Path("outputs/compare"))
    overrides: tuple[str, ...] = overrides()

    def __post_init__(self) -> None:
        known = STUDIES[self.study].variants
        if unknown := [name for name in self.algos if name not in known]:
            close = rules.guess(unknown[0], known)
            raise UserError(f"algos={unknown[0]}: not in study={self.study}{close}; it has {', '.join(known)}")
        if given := [override for override in self.overrides if override.startswith("run_dir=")]:
            raise UserError(f"{given[0]}: each run of a study has a directory of its own: dir= is that of them all")

    def as_study(self) -> Study:
        """The study with these changes."""
        study = STUDIES[self.study]
        return dataclasses.replace(
            study,
            variants={name: study.variants[name] for name in self.algos},
            overrides=(*study.overrides, *self.overrides),
            **{name: getattr(self, name) for name in ("seeds", "lrs", "steps", "puzzles", "samples", "jobs")},
        )


def run(options: Options) -> None:
    """Run what isn't done yet."""
    from recipe.flowrl.compare import run_exact_study, run_study

    study, directory = options.as_study(), options.dir.absolute()
    if isinstance(study, ExactStudy):
        run_exact_study.carry_out(study, directory, options.study)
    else:
        run_study.carry_out(study, directory, options.study)


COMMAND = Command(
    Options,
    run,
    examples=("study=countdown algos=flowrl,grpo", "study=ablations seeds=0,1 jobs=2 dir=outputs/ablations"),
    notes=(
        "Every run goes through train. What is done isn't done again, so the same command continues a study; studies "
        "in one directory share the runs that they have in common.",
    ),
)
