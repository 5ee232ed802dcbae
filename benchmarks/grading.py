"""The rewards: responses graded a second, the slowest long response, and the references of public mathematics sets."""

import os
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from benchmarks import references
from benchmarks.rows import Row, summary_row
from benchmarks.stats import summarize
from recipe.flowrl.common.progress import Progress
from recipe.flowrl.reporting.console import RunConsole
from recipe.flowrl.sandbox import bubblewrap
from recipe.flowrl.tasks.code import reward as code
from recipe.flowrl.tasks.math import reward as math

_PROGRAM = "```python\nprint(sum(map(int, input().split())))\n```"
_TESTS = '[{"input": "1 2", "output": "3"}]'
_ANSWER, _REFERENCE = r"\boxed{2\sqrt{3}}", r"\sqrt{12}"
_LONG = 1_000_000
_MATH_TIMES = 32
"""A comparison takes less than a millisecond: so many times more of them make a batch that can be timed."""

_REPEATED = (
    *("\\boxed{", "\\boxed", "\\boxed{1}", "\\boxed{1}, ", "\\boxed ", "\\boxed[", "{", "}", "{}", "\\", "\\{"),
    *("answer", "answer ", "answer" + " " * 9, "answer is ", "Answer:", "\nAnswer: ", "Answer:\n", "Answer: \\["),
    *(
        "\nFinal answer\n",
        "\n",
        "\n***",
        "*",
        "**",
        "$",
        "$$",
        " ",
        "\t",
        "\u3000",
        "the ",
        "\\text{and}",
        "1",
        "x",
        "\ud800",
    ),
)
"""What a long response is made of: the openers and separators that the extraction knows, and other text."""


@dataclass(frozen=True)
class Effort:
    """Responses in a batch, batches, and threads that grade them."""

    responses: int = 64
    batches: int = 5
    threads: int = os.cpu_count() or 1
    references: bool = False
    """Whether to go through the public sets, which takes minutes."""


QUICK = Effort(responses=4, batches=2)


def measure(effort: Effort, console: RunConsole) -> dict[str, Any]:
    """Returns ``settings``, ``summary`` and ``samples`` (responses a second), all JSON.

    ``machine`` among the samples is what the machine gives between the batches: million steps of a loop a second.
    Programs are left out where bubblewrap can't run, the references where their data isn't.
    """
    graders = {"math": lambda: math.compute_score("math", _ANSWER, _REFERENCE, workers=effort.threads)}
    if bubblewrap.problem() is None:
        graders["programs"] = lambda: code.compute_score("taco", _PROGRAM, _TESTS, concurrency=effort.threads)
    samples: dict[str, list[float]] = {name: [] for name in (*graders, "machine")}
    for name, grade in graders.items():
        responses = effort.responses * (_MATH_TIMES if name == "math" else 1)
        with console.phase(f"grading: {name}, {effort.batches} batches"):
            _rate(grade, effort.threads, effort.threads)  # starts the workers
            for _ in range(effort.batches):
                samples[name].append(_rate(grade, responses, effort.threads))
                samples["machine"].append(_machine())
    summary = {name: asdict(summarize(rates)) for name, rates in samples.items()}
    result = {"settings": asdict(effort), "summary": summary, "samples": samples}
    with console.phase("grading: responses of 1 MB"):
        result["longest"] = _slowest(_LONG if effort.references else _LONG // 100, console)
    if effort.references and references.DATA.is_dir():
        with console.phase("grading: near references of MATH and OlympiadBench"):
            result["pairs"] = references.measure_pairs(console.message)
        with console.phase("grading: references in six writings"):
            result["writings"] = references.measure_writings(console.message)
    return result


def _machine() -> float:
    started = time.perf_counter()
    for _ in range(2_000_000):
        pass
    return 2 / (time.perf_counter() - started)


def _slowest(characters: int, console: RunConsole) -> dict[str, Any]:
    """The response of ``characters`` that takes longest: alone, and with an answer before or behind."""
    seconds = {}
    progress = Progress(console.message, "responses of 1 MB", len(_REPEATED), unit="pieces")
    for piece in _REPEATED:
        for before, behind in (("", ""), ("Answer: ", ""), ("\\boxed{3} ", ""), ("", "\\boxed{3}")):
            response = before + piece * (characters // len(piece)) + behind
            started = time.perf_counter()
            math.compute_score("math", response, "4")
            seconds[(before, piece, behind)] = time.perf_counter() - started
        progress.add()
    slowest = max(seconds, key=seconds.__getitem__)
    return {"characters": characters, "responses": len(seconds), "seconds": seconds[slowest], "slowest": list(slowest)}


def _rate(grade: Callable[[], dict[str, float]], responses: int, threads: int) -> float:
    """Responses a second.

    Raises:
        RuntimeError: a right response wasn't graded so: what was timed isn't grading.
    """
    left, scores = iter(range(responses)), []

    def work() -> None:
        for _ in left:
            scores.append(grade()["score"])

    workers = [threading.Thread(target=work) for _ in range(threads)]
    started = time.perf_counter()
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    seconds = time.perf_counter() - started
    if scores != [1.0] * responses:
        raise RuntimeError(f"{scores.count(1.0)} of {responses} right responses scored 1")
    return responses / seconds


def rows(result: dict[str, Any]) -> list[Row]:
    """The table's lines."""
    units = {"machine": "million steps/s"}
    table = [summary_row(name, summary, units.get(name, "responses/s")) for name, summary in result["summary"].items()]
    longest = result["longest"]
    table.append(Row("slowest response of 1 MB", longest["seconds"], "s", f"{longest['responses']} shapes", 1.0))
    if "pairs" in result:
        pairs = result["pairs"]
        table.append(Row("near references taken for equal", len(pairs["accepted"]), "", f"of {pairs['pairs']} pairs"))
        table.append(Row("near pairs over the limit of time", len(pairs["over_limit"]), ""))
    if "writings" in result:
        written = result["writings"]["written"]
        for name, count in written.items():
            refused = len(result["writings"]["refused"].get(name, []))
            table.append(Row(f"references refused, written as {name}", refused, "", f"of {count}"))
    return table
