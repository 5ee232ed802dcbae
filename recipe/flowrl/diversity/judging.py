"""Judges a benchmark: which solutions, how often, what was asked before, what it cost, how far repeats agree."""

import hashlib
import random
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from recipe.flowrl.common import rules
from recipe.flowrl.common.errors import UserError
from recipe.flowrl.common.jsonl import JsonLines
from recipe.flowrl.diversity.diversity_options import JudgeOptions
from recipe.flowrl.diversity.evaluations import POPULATIONS, Samples
from recipe.flowrl.diversity.judge import Judge, Outcome, request
from recipe.flowrl.diversity.measures import summarise
from recipe.flowrl.diversity.texts import MISSING


@dataclass(frozen=True)
class Question:
    """The responses of a problem in one order. ``key`` changes with whatever is asked, and with nothing else."""

    population: str
    problem: str
    repeat: int
    prompt: str
    solutions: tuple[str, ...]
    key: str


def questions(samples: Sequence[Samples], options: JudgeOptions) -> list[Question]:
    """What to ask. A problem with fewer responses in a population than ``options.responses`` isn't asked about."""
    found = []
    for population in POPULATIONS:
        for problem in samples:
            texts = [response.text for response in problem.only(population)]
            if len(texts) < options.responses:
                continue
            chosen = random.Random(problem.problem).sample(texts, options.responses)
            for repeat in range(options.repeats):
                order = tuple(random.Random(f"{problem.problem} {repeat}").sample(chosen, len(chosen)))
                asked = f"{options.model}\n{request(problem.prompt, order)}"
                key = hashlib.sha256(f"{repeat}\n{asked}".encode(errors="replace")).hexdigest()
                found.append(Question(population, problem.problem, repeat, problem.prompt, order, key))
    return found


def ask(
    asked: Sequence[Question], judge: Judge, options: JudgeOptions, log: Path, on_done: Callable[[int, int], None]
) -> list[dict[str, Any]]:
    """The answer to each question, from ``log`` where it has a score, else from the judge and then appended to it.

    Args:
        asked, judge, options: see there.
        log: JSON lines; questions that ended in an error are asked again by the next call.
        on_done: called with the questions asked and those to ask.

    Returns:
        For each question what the log holds, with its population and problem.

    Raises:
        UserError: the endpoint refuses every request.
    """
    lines = JsonLines(log)
    known = {row["key"]: row for row in lines.read() if _is_answer(row)}
    # Where all answers are right, both populations ask the same.
    todo = {question.key: question for question in asked if question.key not in known}
    done = 0
    lock, stop = threading.Lock(), threading.Event()

    def answer(question: Question) -> dict[str, Any] | None:
        if stop.is_set():
            return None
        row = _row(question, judge(question.prompt, question.solutions))
        with lock:
            lines.append(row)
        return row

    answers = dict(known)
    with ThreadPoolExecutor(options.concurrency) as pool:
        waiting = [pool.submit(answer, question) for question in todo.values()]
        try:
            for future in as_completed(waiting):
                row = future.result()
                if row is not None:
                    answers[row["key"]] = row
                done += 1
                on_done(done, len(todo))
        except BaseException:
            stop.set()
            raise
    return [
        answers[question.key] | {"population": question.population, "problem": question.problem} for question in asked
    ]


def report(answers: Iterable[Mapping[str, Any]], problems: int, options: JudgeOptions) -> dict[str, Any]:
    """Scores by population and problem, errors beside them, agreement of repeats, tokens and money.

    Args:
        answers: of :func:`ask`.
        problems: of the benchmark, to say how many had too few responses.
        options: see there.
    """
    answers = list(answers)
    paid = {row["key"]: row for row in answers}.values()
    tokens = [sum(row[name] for row in paid) for name in ("prompt_tokens", "completion_tokens")]
    cost = sum(n * price for n, price in zip(tokens, options.price, strict=True)) / 1e6 if options.price else None
    return {
        "endpoint": options.url,
        "model": options.model,
        "responses": options.responses,
        "repeats": options.repeats,
        "populations": {name: _population(answers, name, problems) for name in POPULATIONS},
        "prompt_tokens": tokens[0],
        "completion_tokens": tokens[1],
        "cost": cost,
    }


def _population(answers: Sequence[Mapping[str, Any]], name: str, problems: int) -> dict[str, Any]:
    rows = [row for row in answers if row["population"] == name]
    scores: dict[str, list[int]] = {}
    for row in rows:
        if row["score"] is not None:
            scores.setdefault(row["problem"], []).append(row["score"])
    result: dict[str, Any] = {
        "scores": scores,
        "too_few_responses": problems - len({row["problem"] for row in rows}),
        "errors": dict(Counter(row["error"].split(":")[0] for row in rows if row["error"])),
        "contradict_themselves": sum(bool(row["contradicts_itself"]) for row in rows),
        "agreement": agreement(list(scores.values())),
    }
    if scores:
        result |= summarise({problem: float(np.mean(given)) for problem, given in scores.items()})
    return result


def agreement(scores: Sequence[Sequence[int]]) -> dict[str, float | int | None]:
    """How far repeats agree: ``exact``, the share of pairs with the same score, and Krippendorff's ordinal alpha.

    Args:
        scores: of each problem, one for each repeat that gave one.

    Returns:
        These and ``problems`` with two scores or more. ``alpha`` is None where all scores are the same.
    """
    repeated = [row for row in scores if len(row) > 1]
    if not repeated:
        return {"exact": None, "alpha": None, "problems": 0}
    try:
        from krippendorff import alpha
    except ImportError:
        raise UserError(MISSING.format("krippendorff")) from None
    pairs = [a == b for row in repeated for a, b in combinations(row, 2)]
    table = np.full((max(map(len, repeated)), len(repeated)), np.nan)
    for column, row in enumerate(repeated):
        table[: len(row), column] = row
    values = {score for row in repeated for score in row}
    ordinal = float(alpha(table, level_of_measurement="ordinal")) if len(values) > 1 else None
    return {"exact": float(np.mean(pairs)), "alpha": ordinal, "problems": len(repeated)}


def _row(question: Question, outcome: Outcome) -> dict[str, Any]:
    verdict = outcome.verdict
    return {
        "key": question.key,
        "problem": question.problem,
        "repeat": question.repeat,
        "score": verdict.score if verdict else None,
        "groups": [group.model_dump() for group in verdict.groups] if verdict else None,
        "contradicts_itself": verdict.contradicts_itself(len(question.solutions)) if verdict else None,
        "error": outcome.error,
        "prompt_tokens": outcome.prompt_tokens,
        "completion_tokens": outcome.completion_tokens,
    }


def _is_answer(row: Any) -> bool:
    """Whether a line of the log is as :func:`_row` makes it, with a score."""
    if not isinstance(row, dict) or not isinstance(row.get("key"), str) or not {"error", "groups"} <= row.keys():
        return False
    counts: list[Any] = [row.get(name) for name in ("score", "prompt_tokens", "completion_tokens")]
    return all(rules.COUNT_OR_ZERO.accepts(count) for count in counts) and 1 <= counts[0] <= 5
