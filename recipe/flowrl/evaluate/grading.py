"""Grades of kept samples, by the rewards of the training: one extractor, whatever system wrote the response."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from typing import Any

from recipe.flowrl.common.errors import UserError
from recipe.flowrl.common.progress import Progress
from recipe.flowrl.evaluate.benchmarks import Benchmark, Problem
from recipe.flowrl.evaluate.records import Record, Records
from recipe.flowrl.evaluate.votes import answer_groups
from recipe.flowrl.sandbox import bubblewrap
from recipe.flowrl.sandbox.choose import UNSAFE
from recipe.flowrl.tasks.code import reward as code
from recipe.flowrl.tasks.countdown import reward as countdown
from recipe.flowrl.tasks.countdown.expressions import canonical_form
from recipe.flowrl.tasks.math import reward as math
from recipe.flowrl.tasks.math.answers import final_answer
from recipe.flowrl.tasks.rows import brief

_CPUS = os.cpu_count() or 2


@dataclass(frozen=True)
class Verdict:
    """Of one response: whether it is right, and the final answer or program that was found in it, if any.

    ``failed``: the grader broke off, which says nothing about the response.
    """

    correct: bool
    answer: str | None
    timed_out: bool = False
    failed: bool = False


@dataclass(frozen=True)
class Grader:
    """How the responses of a suite are graded.

    Attributes:
        name: with the version of what decides, for the protocol.
        judge: the verdict on a response.
        same: whether two answers, both right or both wrong, are the same one; None: there is no voting on such answers.
        respond: a response that gives a reference as its answer; None: references are tests or puzzles.
    """

    name: str
    judge: Callable[[Problem, str], Verdict]
    same: Callable[[Verdict, Verdict], bool] | None
    respond: Callable[[str], str] | None = None


def grader_for(suite: str, sandbox: str, sandbox_url: str | None) -> Grader:
    """The grader of a suite; ``sandbox`` and ``sandbox_url`` are for programs.

    Raises:
        UserError: there is no sandbox for programs; better known before hours of generation.
    """
    if suite == "code":
        if not sandbox_url and sandbox != UNSAFE and (reason := bubblewrap.problem()):
            raise UserError(
                f"no sandbox for the model's programs: {reason}. Make bubblewrap work, or name a SandboxFusion server "
                f"with sandbox_url=http://HOST:8080; to run them with all your rights: sandbox={UNSAFE}"
            )
        name = f"recipe.flowrl.tasks.code.reward in {'SandboxFusion' if sandbox_url else sandbox}"
        return Grader(name, partial(_judge_code, sandbox=sandbox, sandbox_url=sandbox_url), None)
    if suite == "countdown":
        return Grader("recipe.flowrl.tasks.countdown.reward", _judge_countdown, lambda a, b: a.answer == b.answer)
    name = f"recipe.flowrl.tasks.math.reward, mpmath {version('mpmath')}"
    return Grader(name, _judge_math, _same_math, lambda truth: f"\\boxed{{{math.references(truth)[0]}}}")


def check_references(benchmarks: Sequence[Benchmark], grader: Grader) -> list[str]:
    """Let the grader read each reference, on a response that gives it: better known before hours of generation.

    Returns:
        A line for each benchmark with references that the grader doesn't take for right answers to themselves.

    Raises:
        UserError: the grader can't read a reference.
    """
    lines = []
    for benchmark in benchmarks:
        unequal = []
        for problem in benchmark.problems:
            try:
                verdict = grader.judge(problem, grader.respond(problem.ground_truth) if grader.respond else "")
            except UserError:
                raise
            except Exception as error:
                raise UserError(
                    f"{problem.id}: reward_model.ground_truth can't be graded with ({brief(error)}): prepare the data "
                    "again, or leave its benchmark out"
                ) from error
            if grader.respond and not verdict.correct:
                unequal.append(problem.id)
        if unequal:
            lines.append(
                f"{benchmark.name}: {len(unequal)} references that the grader doesn't understand, so that no response "
                f"to them is right: {', '.join(unequal[:5])}{', ...' if len(unequal) > 5 else ''}"
            )
    return lines


def grade(benchmark: Benchmark, samples: Records, grades: Records, grader: Grader, progress: Progress) -> None:
    """Grade the problems that have samples and no grades yet, and append them to ``grades``, problem by problem."""
    todo = [item for item in benchmark.problems if item.id in samples.by_problem and item.id not in grades.by_problem]
    pool = ThreadPoolExecutor(max(2, _CPUS))
    try:
        for future in as_completed([pool.submit(_graded, grader, item, samples.by_problem[item.id]) for item in todo]):
            grades.append(future.result())
            progress.add(len(future.result()))
    finally:
        pool.shutdown(cancel_futures=True)


def _graded(grader: Grader, problem: Problem, samples: Sequence[Record]) -> list[Record]:
    verdicts = [grader.judge(problem, sample["response"]) for sample in samples]
    groups = answer_groups(verdicts, grader.same) if grader.same else [None] * len(verdicts)
    return [_record(*graded) for graded in zip(samples, verdicts, groups, strict=True)]


def _record(sample: Record, verdict: Verdict, group: int | None) -> Record:
    return {
        "problem": sample["problem"],
        "sample": sample["sample"],
        "correct": verdict.correct,
        "answer": verdict.answer,
        "extracted": verdict.answer is not None,
        "timed_out": verdict.timed_out,
        "grader_failed": verdict.failed,
        "group": group,
    }


def _judge_math(problem: Problem, response: str) -> Verdict:
    score = math.compute_score("", response, problem.ground_truth, problem.extra_info, workers=_CPUS)
    return _verdict(score, final_answer(response))


def _same_math(first: Verdict, second: Verdict) -> bool:
    if first.correct:
        return True
    if first.timed_out or second.timed_out:  # what can't be compared in time with one can't with the others
        return False
    return math.same_answer(first.answer, second.answer, workers=_CPUS)


def _judge_code(problem: Problem, response: str, sandbox: str, sandbox_url: str | None) -> Verdict:
    source = problem.id.partition("/")[0]
    score = code.compute_score(
        source, response, problem.ground_truth, problem.extra_info, sandbox=sandbox, sandbox_url=sandbox_url
    )
    return _verdict(score, code.last_program(response))


def _judge_countdown(problem: Problem, response: str) -> Verdict:
    score = countdown.compute_score("countdown", response, problem.ground_truth)
    return _verdict(score, canonical_form(response.split("<|", 1)[0].strip()))


def _verdict(score: dict[str, Any], answer: str | None) -> Verdict:
    flags = [bool(score.get(name, 0.0)) for name in ("timed_out", "grader_failed")]
    return Verdict(bool(score["acc"]), answer, *flags)
