"""What an evaluation is asked to do: ``KEY=VALUE`` from the command line, checked."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from recipe.flowrl import rules
from recipe.flowrl.errors import UserError
from recipe.flowrl.evaluate.model import model_name
from recipe.flowrl.rules import Rule
from recipe.flowrl.sandbox.choose import UNSAFE

SUITES = {
    "math": ("aime2024", "aime2025", "amc23", "math500", "minerva", "olympiadbench"),
    "code": ("livecodebench", "codeforces", "humanevalplus"),
    "gsm8k": ("gsm8k",),
    "countdown": ("countdown",),
}
"""Suite -> benchmarks, by the ``data_source`` that ``prepare_data`` gives their problems."""

_MAX_TOKENS = {"countdown": 32}
"""Of suites that need less than the protocol's 8192."""


@dataclass(frozen=True)
class Options:
    """An evaluation.

    Attributes:
        model: Hugging Face directory or hub name, a checkpoint ``.../global_step_N``, or what ``server`` calls it.
        suite: of :data:`SUITES`.
        benchmarks: of the suite.
        data: directory of the benchmarks' files.
        out: where everything is written.
        n: samples of each problem.
        temperature, top_p: of the sampling.
        max_tokens: longest response.
        seed: of the evaluation; each sample's own follows from it.
        problems: of each benchmark, from the first; None: all.
        server: base URL of an OpenAI-compatible server; None: vLLM in this process.
        concurrency: requests to the server at once.
        grade_only: grade the samples that are there again; generate nothing.
        against: the ``out`` of another evaluation, to compare with on the same problems.
        contests: directory of Codeforces standings (:mod:`recipe.flowrl.evaluate.contests`).
        sandbox, sandbox_url: where programs run (:mod:`recipe.flowrl.sandbox.choose`).
        engine: settings of vLLM's engine, by the names of its ``EngineArgs``.
    """

    model: str
    suite: str
    benchmarks: tuple[str, ...]
    data: Path
    out: Path
    n: int = 16
    temperature: float = 0.6
    top_p: float = 0.95
    max_tokens: int = 8192
    seed: int = 0
    problems: int | None = None
    server: str | None = None
    concurrency: int = 64
    grade_only: bool = False
    against: Path | None = None
    contests: Path | None = None
    sandbox: str = "bubblewrap"
    sandbox_url: str | None = None
    engine: dict[str, Any] = field(default_factory=dict)


_TOP_P = rules.number("in (0, 1]", lambda value: 0 < value <= 1)
_TEXT = Rule("text", lambda value: isinstance(value, str))
_PATH = Rule("a path", lambda value: isinstance(value, str) and value != "", Path)
_NUMBERS = {
    "n": rules.COUNT,
    "temperature": rules.NOT_NEGATIVE,
    "top_p": _TOP_P,
    "max_tokens": rules.COUNT,
    "seed": rules.COUNT_OR_ZERO,
    "problems": rules.COUNT,
    "concurrency": rules.COUNT,
    "grade_only": rules.BOOLEAN,
}
_TEXTS = {
    "model": _TEXT,
    "suite": rules.one_of(SUITES),
    "benchmarks": _TEXT,
    "data": _PATH,
    "out": _PATH,
    "server": Rule("a URL", lambda value: str(value).startswith(("http://", "https://"))),
    "against": _PATH,
    "contests": _PATH,
    "sandbox": rules.one_of(("bubblewrap", UNSAFE)),
    "sandbox_url": Rule("a URL", lambda value: str(value).startswith(("http://", "https://"))),
}


def parse(arguments: Sequence[str]) -> Options:
    """The evaluation that ``arguments`` ask for.

    Raises:
        UserError: a key or value is wrong, or ``model`` or ``suite`` is missing.
    """
    given: dict[str, Any] = {}
    engine: dict[str, Any] = {}
    for argument in arguments:
        key, equals, text = argument.partition("=")
        if not equals:
            raise UserError(f"{argument!r}: expected KEY=VALUE, for example suite=math")
        if key.startswith("engine."):
            engine[key.removeprefix("engine.")] = _plain(text)
        else:
            given[key] = _checked(key, text)
    for key in ("model", "suite"):
        if key not in given:
            raise UserError(f"{key}= is missing: python -m recipe.flowrl.evaluate model=PATH suite={'|'.join(SUITES)}")
    if engine and "server" in given:
        raise UserError(f"engine.{next(iter(engine))}: settings of an engine here, and server= names one elsewhere")
    if "contests" in given and not given["contests"].is_dir():
        raise UserError(f"contests={given['contests']}: no such directory: python -m recipe.flowrl.evaluate.contests")
    suite = given["suite"]
    given["benchmarks"] = _benchmarks(suite, given.get("benchmarks"))
    given.setdefault("max_tokens", _MAX_TOKENS.get(suite, Options.max_tokens))
    given.setdefault("data", cache_directory() / suite)
    given.setdefault("out", Path("outputs", "evaluation", model_name(given["model"]), suite))
    return Options(**given, engine=engine)


def cache_directory() -> Path:
    """Where prepared data are by default, as in a run's ``cache_dir``."""
    return Path(os.environ.get("FLOWRL_CACHE", Path.home() / ".cache" / "flowrl"))


def _checked(key: str, text: str) -> Any:
    if key in _NUMBERS:
        rule, value = _NUMBERS[key], _plain(text)
    elif key in _TEXTS:
        rule, value = _TEXTS[key], text
    else:
        raise UserError(f"{key}: no such option{rules.guess(key, [*_NUMBERS, *_TEXTS])}; engine.NAME= is vLLM's")
    if not rule.accepts(value):
        raise UserError(f"{key}={text}: must be {rule.allowed}")
    return rule.convert(value)


def _plain(text: str) -> Any:
    """``text`` as the number, truth value or null that it is, else as it stands."""
    if text in ("true", "false", "null"):
        return {"true": True, "false": False, "null": None}[text]
    converters: tuple[Callable[[str], Any], ...] = (int, float)
    for convert in converters:
        try:
            return convert(text)
        except ValueError:
            continue
    return text


def _benchmarks(suite: str, asked: str | None) -> tuple[str, ...]:
    known = SUITES[suite]
    names = tuple(dict.fromkeys(asked.split(","))) if asked else known
    if unknown := [name for name in names if name not in known]:
        raise UserError(
            f"benchmarks={unknown[0]}: not in suite={suite}{rules.guess(unknown[0], known)}; it has {', '.join(known)}"
        )
    return names
