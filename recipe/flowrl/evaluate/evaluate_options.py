"""What an evaluation is asked to do."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recipe.flowrl.common import rules
from recipe.flowrl.common.cache import cache_directory
from recipe.flowrl.common.command_line import option
from recipe.flowrl.common.errors import UserError
from recipe.flowrl.evaluate.model_path import model_name
from recipe.flowrl.sandbox.choose import UNSAFE

SUITES = {
    "math": ("aime2024", "aime2025", "amc23", "math500", "minerva", "olympiadbench"),
    "code": ("livecodebench", "codeforces", "humanevalplus"),
    "gsm8k": ("gsm8k",),
    "countdown": ("countdown",),
}
"""Suite -> benchmarks, by the ``data_source`` that ``prepare`` gives their problems."""

_MAX_TOKENS = 8192
_FEWER_TOKENS = {"countdown": 32}
"""Of suites that need less than the protocol."""


@dataclass(frozen=True)
class Options:
    """An evaluation.

    Raises:
        UserError: options that don't go together, or a name that the suite doesn't have.
    """

    model: str = option(
        "Hugging Face directory or hub name, a checkpoint .../global_step_N, or what the server calls its model."
    )
    suite: str = option("The group of benchmarks.", rule=rules.one_of(SUITES))
    benchmarks: tuple[str, ...] = option(
        "Which of the suite's benchmarks.", fill=lambda given: SUITES[given.suite], default="all of the suite"
    )
    data: Path = option(
        "Directory of the benchmarks' files, as prepare writes them.",
        fill=lambda given: cache_directory() / given.suite,
        default="SUITE in the cache ($FLOWRL_CACHE, ~/.cache/flowrl)",
    )
    out: Path = option(
        "Directory for everything that is written; what is there already is continued.",
        fill=lambda given: Path("outputs", "evaluation", model_name(given.model), given.suite),
        default="outputs/evaluation/MODEL/SUITE",
    )
    n: int = option("Samples of each problem.", value=16, rule=rules.COUNT)
    temperature: float = option("Temperature of the sampling.", value=0.6, rule=rules.NOT_NEGATIVE)
    top_p: float = option(
        "Nucleus of the sampling.", value=0.95, rule=rules.number("in (0, 1]", lambda value: 0 < value <= 1)
    )
    max_tokens: int = option(
        "Longest response, in tokens.",
        value=_MAX_TOKENS,
        rule=rules.COUNT,
        fill=lambda given: _FEWER_TOKENS.get(given.suite, _MAX_TOKENS),
        default=f"{_MAX_TOKENS}; 32 for suite=countdown",
    )
    seed: int = option("Seed of the evaluation; each sample's own follows from it.", value=0, rule=rules.COUNT_OR_ZERO)
    problems: int | None = option("Problems of each, from the first; null: all.", value=None, rule=rules.COUNT)
    server: str | None = option(
        "Base URL of an OpenAI-compatible server; null: vLLM in this process.", value=None, rule=rules.URL
    )
    concurrency: int = option("Requests to the server at once.", value=64, rule=rules.COUNT)
    grade_only: bool = option("Grade the samples that are there again, and generate nothing.", value=False)
    trust: bool = option("A checkpoint may run code while it is read: you know who wrote it.", value=False)
    against: Path | None = option("The out of another evaluation, to be compared with problem by problem.", value=None)
    contests: Path | None = option(
        "Directory of Codeforces standings, for a rating (prepare codeforces_standings).",
        value=None,
        rule=rules.DIRECTORY,
    )
    sandbox: str = option("Where programs run.", value="bubblewrap", rule=rules.one_of(("bubblewrap", UNSAFE)))
    sandbox_url: str | None = option("URL of a SandboxFusion server, instead.", value=None, rule=rules.URL)
    engine: dict[str, Any] = option("Settings of vLLM's engine, by the names of its EngineArgs.", value={})

    def __post_init__(self) -> None:
        if self.engine and self.server:
            raise UserError(
                f"engine.{next(iter(self.engine))}: settings of an engine here, and server= names one elsewhere"
            )
        known = SUITES[self.suite]
        if unknown := [name for name in self.benchmarks if name not in known]:
            raise UserError(
                f"benchmarks={unknown[0]}: not in suite={self.suite}{rules.guess(unknown[0], known)}; "
                f"it has {', '.join(known)}"
            )
        object.__setattr__(self, "benchmarks", tuple(dict.fromkeys(self.benchmarks)))
