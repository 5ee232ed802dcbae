"""What is to be measured of evaluated systems."""

import os
from dataclasses import dataclass
from pathlib import Path

from omegaconf import DictConfig

from recipe.flowrl.common import rules
from recipe.flowrl.common.command_line import option
from recipe.flowrl.common.errors import UserError
from recipe.flowrl.diversity.evaluations import KINDS, POPULATIONS
from recipe.flowrl.diversity.judge import FEWEST

KEY_VARIABLE = "OPENAI_API_KEY"
_BENCHMARKS = rules.one_of(KINDS)
_PAPER_BENCHMARKS = ("aime2024", "aime2025")


@dataclass(frozen=True)
class JudgeOptions:
    """``url``, ``model`` of the endpoint; ``responses`` shown of each problem; ``repeats``, each in another order;
    ``concurrency`` requests at once; ``price`` of a million prompt and completion tokens, if known."""

    url: str
    model: str
    responses: int = 16
    repeats: int = 3
    concurrency: int = 8
    price: tuple[float, float] | None = None


def _default_embedding(_: DictConfig) -> Path | None:
    from recipe.flowrl.diversity.embeddings import default_model  # torch, which a help text doesn't need

    return default_model()


@dataclass(frozen=True)
class Options:
    """A measurement. Raises UserError for options that don't go together."""

    evaluations: tuple[Path, ...] = option(
        "Directories that evaluate has written.", rule=rules.DIRECTORY, place="EVALUATION"
    )
    embedding: Path | None = option(
        "A Hugging Face encoder for the measures of embeddings; null: they are left out.",
        rule=rules.DIRECTORY,
        fill=_default_embedding,
        default="all-MiniLM-L6-v2 if its package is installed, else null",
    )
    benchmarks: tuple[str, ...] | None = option(
        "Which benchmarks to measure; null: all of the evaluation.", value=None, rule=_BENCHMARKS
    )
    judge: str | None = option(
        f"URL of an OpenAI-compatible endpoint that judges the answers; its key is read from {KEY_VARIABLE}.",
        value=None,
        rule=rules.URL,
    )
    judge_model: str | None = option("The judge's model; the paper's is gpt-4o-mini.", value=None)
    judge_benchmarks: tuple[str, ...] = option("What is judged.", value=_PAPER_BENCHMARKS, rule=_BENCHMARKS)
    judge_responses: int = option(
        "Answers to a problem that the judge is shown.",
        value=JudgeOptions.responses,
        rule=rules.at_least(FEWEST),
    )
    judge_repeats: int = option(
        "Times that it is asked about each problem, in another order.", value=JudgeOptions.repeats, rule=rules.COUNT
    )
    judge_concurrency: int = option("Requests to it at once.", value=JudgeOptions.concurrency, rule=rules.COUNT)
    judge_price: tuple[float, ...] | None = option(
        "Price of a million prompt tokens and of a million completion tokens, as 0.15,0.60; null: no cost is told.",
        value=None,
        rule=rules.NOT_NEGATIVE,
    )
    ranking: str | None = option(
        "Instead of measuring: how the measures rank the evaluations, which have been measured, by these answers.",
        value=None,
        rule=rules.one_of(POPULATIONS),
    )
    out: Path | None = option("A JSON file for the ranking.", value=None)

    def __post_init__(self) -> None:
        if self.out is not None and self.ranking is None:
            raise UserError("out= without ranking=: the measures are written into the evaluations")
        self.judge_options()

    def judge_options(self) -> JudgeOptions | None:
        """The judge's, None without one. Raises UserError if something is missing for it."""
        if self.judge is None:
            mine = [name for name in self.__dataclass_fields__ if name.startswith("judge_")]
            if alone := [n for n in mine if getattr(self, n) != self.__dataclass_fields__[n].default]:
                raise UserError(f"{alone[0]}= without judge=URL")
            return None
        if self.judge_model is None:
            raise UserError("judge=URL needs judge_model=NAME; the paper's is gpt-4o-mini")
        if KEY_VARIABLE not in os.environ:
            raise UserError(
                f"judge: put the key into the environment variable {KEY_VARIABLE}; any text if none is needed"
            )
        price = self.judge_price
        if price is not None and len(price) != 2:
            raise UserError(f"judge_price={','.join(map(str, price))}: must be two numbers, as 0.15,0.60")
        return JudgeOptions(
            self.judge, self.judge_model, self.judge_responses, self.judge_repeats, self.judge_concurrency, price
        )
