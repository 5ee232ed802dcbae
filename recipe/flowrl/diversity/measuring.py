"""Measures the diversity of evaluated systems; what a judge has answered is kept and isn't asked again."""

import os
import sys
import time
from collections.abc import Callable
from typing import Any

from recipe.flowrl.common.errors import UserError
from recipe.flowrl.common.files import write_json
from recipe.flowrl.common.progress import HEARTBEAT_S, short_duration
from recipe.flowrl.common.statistics import powers_of_two
from recipe.flowrl.diversity.diversity_options import KEY_VARIABLE, JudgeOptions, Options
from recipe.flowrl.diversity.embeddings import Embed, Embedder, remembering
from recipe.flowrl.diversity.evaluations import POPULATIONS, Evaluation, Samples, kind_of, read_evaluation
from recipe.flowrl.diversity.judge import Judge
from recipe.flowrl.diversity.judging import ask, questions, report
from recipe.flowrl.diversity.lines import lines
from recipe.flowrl.diversity.measures import collect, measure_problem, summarise
from recipe.flowrl.reporting.console import RunConsole

DIVERSITY_FILE = "diversity.json"


def measure_all(options: Options) -> None:
    """Measure every evaluation, write its :data:`DIVERSITY_FILE` and print its table.

    Raises:
        UserError: an evaluation is damaged or lacks a benchmark, or the judge refuses.
    """
    evaluations = [read_evaluation(directory) for directory in options.evaluations]
    for evaluation in evaluations:
        _names(evaluation, options)
    with RunConsole(sys.stdout) as console:
        embed = Embedder(options.embedding) if options.embedding else None
        if embed is None:
            console.message("no embedding model: its measures are left out (docs/tables.md says how to get one)")
        for evaluation in evaluations:
            result = measure(evaluation, options, embed, console)
            write_json(evaluation.directory / DIVERSITY_FILE, result)
            for line in lines(result):
                console.message(line)
            console.message(f"written: {evaluation.directory / DIVERSITY_FILE}")


def measure(evaluation: Evaluation, options: Options, embed: Embed | None, console: RunConsole) -> dict[str, Any]:
    """What :data:`DIVERSITY_FILE` holds: for each benchmark ``values`` and ``summary`` by population, and ``judge``.

    ``values[population][measure][m][problem]``; ``summary[population][measure][m]`` has value, interval and problems.
    """
    benchmarks = {}
    for name in _names(evaluation, options):
        samples = evaluation.samples(name)
        tell = _teller(console, f"{evaluation.directory.name}, {name}")
        found = _each_problem(samples, kind_of(name), embed, tell)
        values = {population: collect(by_problem) for population, by_problem in found.items()}
        benchmarks[name] = {"problems": len(samples), "values": values, "summary": _summary(values)}
        if (judge := options.judge_options()) and name in options.judge_benchmarks:
            benchmarks[name]["judge"] = _judged(evaluation, name, samples, judge, console)
    embedding = str(options.embedding) if options.embedding else None
    return {"protocol": evaluation.protocol, "embedding": embedding, "benchmarks": benchmarks}


def _each_problem(
    samples: list[Samples], kind: str, embed: Embed | None, tell: Callable[[int, int], None]
) -> dict[str, dict[str, dict[str, dict[int, float]]]]:
    """Population -> problem -> measure -> draws -> value."""
    draws = [m for m in powers_of_two(max(len(problem.responses) for problem in samples)) if m > 1]
    found: dict[str, dict[str, dict[str, dict[int, float]]]] = {population: {} for population in POPULATIONS}
    for done, problem in enumerate(samples, start=1):
        remembered = remembering(embed) if embed else None
        for population, by_problem in found.items():
            by_problem[problem.problem] = measure_problem(problem, population, kind, draws, remembered)
        tell(done, len(samples))
    return found


def _summary(values: dict[str, Any]) -> dict[str, Any]:
    return {
        population: {
            name: {m: summarise(by_problem) for m, by_problem in by_draws.items()} for name, by_draws in found.items()
        }
        for population, found in values.items()
    }


def _judged(
    evaluation: Evaluation, name: str, samples: list[Samples], options: JudgeOptions, console: RunConsole
) -> dict[str, Any]:
    asked = questions(samples, options)
    different = {question.key: question for question in asked}.values()
    characters = sum(len(text) for question in different for text in (question.prompt, *question.solutions))
    console.message(f"{name}: {len(different)} questions for the judge, about {characters // 4} prompt tokens")
    judge = Judge(options.url, options.model, os.environ[KEY_VARIABLE])
    tell = _teller(console, f"{evaluation.directory.name}, {name}, judge")
    answers = ask(asked, judge, options, evaluation.directory / name / "judge.jsonl", tell)
    return report(answers, len(samples), options)


def _teller(console: RunConsole, what: str) -> Callable[[int, int], None]:
    """Reports progress with the time to go, at most every ten seconds."""
    started = spoke = time.monotonic()

    def tell(done: int, total: int) -> None:
        nonlocal spoke
        now = time.monotonic()
        if now - spoke >= HEARTBEAT_S and done < total:
            spoke = now
            console.message(f"{what}: {done}/{total}, ETA {short_duration((now - started) / done * (total - done))}")

    return tell


def _names(evaluation: Evaluation, options: Options) -> list[str]:
    """The benchmarks to measure. Raises UserError if the evaluation lacks one."""
    names = list(options.benchmarks or evaluation.benchmarks)
    if options.judge and not set(names) & set(options.judge_benchmarks):
        asked = ",".join(options.judge_benchmarks)
        raise UserError(
            f"{evaluation.directory}: nothing to judge: judge_benchmarks={asked}, measured: {','.join(names)}"
        )
    for name in names:
        kind_of(name)
        if name not in evaluation.benchmarks:
            raise UserError(f"{evaluation.directory}: no {name} in it; it has {', '.join(evaluation.benchmarks)}")
    return names
