"""Samples of every problem, each with a seed of its own, kept as soon as a problem has all of its samples."""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from recipe.flowrl.common.progress import Progress
from recipe.flowrl.evaluate.benchmarks import Benchmark, Problem
from recipe.flowrl.evaluate.records import Records


@dataclass(frozen=True)
class Sampling:
    """How responses are drawn: ``temperature``, ``top_p``, at most ``max_tokens`` each; no top-k, no penalties."""

    temperature: float
    top_p: float
    max_tokens: int


@dataclass(frozen=True)
class Request:
    """Sample ``sample`` of a problem, to be drawn with ``seed``."""

    problem: Problem
    sample: int
    seed: int


@dataclass(frozen=True)
class Completion:
    """A response: its text, why it ended (``stop`` or ``length``), and its length."""

    text: str
    finish_reason: str
    tokens: int


class Engine(Protocol):
    """Draws responses."""

    def describe(self) -> dict[str, Any]:
        """What it is, for the protocol: ``name``, ``version``, and what else tells it from others."""

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[tuple[Request, Completion]]:
        """The response to each request, in the order in which they end."""


def request_seed(seed: int, problem: str, sample: int) -> int:
    """A 31-bit seed that depends on nothing else: not on the other problems, nor on what was done before a kill."""
    digest = hashlib.sha256(f"{seed}/{problem}/{sample}".encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1


def unfinished(benchmark: Benchmark, samples: Records) -> list[Problem]:
    """The problems of which there are no samples yet."""
    return [problem for problem in benchmark.problems if problem.id not in samples.by_problem]


def generate(
    engine: Engine,
    problems: Iterable[Problem],
    samples: Records,
    sampling: Sampling,
    n: int,
    seed: int,
    progress: Progress,
) -> None:
    """Draw ``n`` samples of each of ``problems`` and append them to ``samples``, problem by problem as each is done."""
    requests = [
        Request(problem, sample, request_seed(seed, problem.id, sample)) for problem in problems for sample in range(n)
    ]
    drawn: dict[str, dict[int, dict[str, Any]]] = {}
    for request, completion in engine.generate(requests, sampling):
        problem = request.problem
        mine = drawn.setdefault(problem.id, {})
        mine[request.sample] = {
            "problem": problem.id,
            "sample": request.sample,
            "prompt": problem.prompt,
            "response": completion.text,
            "finish_reason": completion.finish_reason,
            "tokens": completion.tokens,
        }
        if len(mine) == n:
            samples.append([mine[sample] for sample in range(n)])
            del drawn[problem.id]
        progress.add(tokens=completion.tokens)
