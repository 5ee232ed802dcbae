"""The command line of ``recipe.flowrl.diversity``: directories and KEY=VALUE."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from recipe.flowrl.diversity.embeddings import default_model
from recipe.flowrl.diversity.evaluation import KINDS
from recipe.flowrl.diversity.judge import FEWEST
from recipe.flowrl.diversity.judging import JudgeOptions
from recipe.flowrl.errors import UserError
from recipe.flowrl.rules import guess

KEY_VARIABLE = "OPENAI_API_KEY"
_COUNTS = {"judge_responses": FEWEST, "judge_repeats": 1, "judge_concurrency": 1}
"""Whole numbers, with the smallest that makes sense."""
_KEYS = ("benchmarks", "embedding", "judge", "judge_model", "judge_benchmarks", "judge_price", *_COUNTS)
_PAPER_BENCHMARKS = ("aime2024", "aime2025")


@dataclass(frozen=True)
class Options:
    """``embedding`` is a model directory; None: no measures of embeddings. ``benchmarks``: None is all of them."""

    directories: tuple[Path, ...]
    benchmarks: tuple[str, ...] | None
    embedding: Path | None
    judge: JudgeOptions | None
    judge_benchmarks: tuple[str, ...]


def parse(arguments: Sequence[str]) -> Options:
    """Raises UserError: something is missing or wrong."""
    directories, given = split(arguments, _KEYS)
    if not directories:
        raise UserError("which evaluation? python -m recipe.flowrl.diversity EVAL_DIR...")
    benchmarks = _benchmarks(given, "benchmarks")
    return Options(
        tuple(directories),
        benchmarks,
        _embedding(given),
        _judge(given),
        _benchmarks(given, "judge_benchmarks") or _PAPER_BENCHMARKS,
    )


def split(arguments: Sequence[str], keys: Sequence[str]) -> tuple[list[Path], dict[str, str]]:
    """Directories and options of ``arguments``. Raises UserError for an unknown key or a path that is no directory."""
    directories, given = [], {}
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if equals and not Path(argument).is_dir():
            if key not in keys:
                raise UserError(f"{key}=: unknown{guess(key, keys)}; there are {', '.join(keys)}")
            given[key] = value
        elif Path(argument).is_dir():
            directories.append(Path(argument))
        else:
            raise UserError(f"{argument}: no such directory; expected evaluation directories and KEY=VALUE")
    return directories, given


def _benchmarks(given: Mapping[str, str], key: str) -> tuple[str, ...] | None:
    names = tuple(given[key].split(",")) if key in given else None
    for name in names or ():
        if name not in KINDS:
            raise UserError(f"{key}={name}: unknown{guess(name, KINDS)}; there are {', '.join(KINDS)}")
    return names


def _embedding(given: Mapping[str, str]) -> Path | None:
    if "embedding" not in given:
        return default_model()
    if given["embedding"] == "none":
        return None
    path = Path(given["embedding"])
    if not path.is_dir():
        raise UserError(f"embedding={path}: no such directory; a Hugging Face model directory, or none")
    return path


def _judge(given: Mapping[str, str]) -> JudgeOptions | None:
    if "judge" not in given:
        if alone := [key for key in given if key.startswith("judge_")]:
            raise UserError(f"{alone[0]}= without judge=URL")
        return None
    if not given["judge"].startswith(("http://", "https://")):
        raise UserError(
            f"judge={given['judge']}: expected the URL of an OpenAI-compatible endpoint, as http://host:8000/v1"
        )
    if "judge_model" not in given:
        raise UserError("judge=URL needs judge_model=NAME; the paper's is gpt-4o-mini")
    if KEY_VARIABLE not in os.environ:
        raise UserError(f"judge: put the key into the environment variable {KEY_VARIABLE}; any text if none is needed")
    numbers = {key.removeprefix("judge_"): _count(key, given[key]) for key in _COUNTS if key in given}
    return JudgeOptions(given["judge"], given["judge_model"], **numbers, price=_price(given.get("judge_price")))


def _count(key: str, text: str) -> int:
    if not text.isdecimal() or int(text) < _COUNTS[key]:
        raise UserError(f"{key}={text}: expected an integer >= {_COUNTS[key]}")
    return int(text)


def _price(text: str | None) -> tuple[float, float] | None:
    if text is None:
        return None
    try:
        prompt, completion = map(float, text.split(","))
    except ValueError:
        raise UserError(
            f"judge_price={text}: expected two numbers, of a million prompt and completion tokens, as 0.15,0.60"
        ) from None
    return prompt, completion
