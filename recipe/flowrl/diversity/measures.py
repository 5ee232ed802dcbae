"""The measures without a judge, problem by problem, and their means with intervals."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from recipe.flowrl.common.statistics import bootstrap
from recipe.flowrl.diversity.embeddings import Embed, mean_cosine_distance, vendi_score
from recipe.flowrl.diversity.evaluations import ALL, CODE, CORRECT, COUNTDOWN, MATH, Response, Samples
from recipe.flowrl.diversity.forms import answer_form, mean_jaccard_distance, solution_form
from recipe.flowrl.diversity.rarefaction import expected_distinct, mean_over_subsets, sampled_pairs
from recipe.flowrl.diversity.texts import distinct_n, self_bleu

Values = dict[str, dict[str, dict[str, float]]]
"""Measure -> number of draws, as text -> problem -> value."""


@dataclass(frozen=True)
class Measure:
    """``title`` as in tables; ``sign``: +1 if more of it is more diverse, else -1; the answers it is defined for."""

    title: str
    sign: int = 1
    kinds: tuple[str, ...] = (MATH, CODE, COUNTDOWN)
    populations: tuple[str, ...] = (CORRECT, ALL)


MEASURES = {
    "distinct_forms": Measure("distinct solution forms"),
    "form_distance": Measure("distance of the equations used", kinds=(MATH,)),
    "distinct_answers": Measure("distinct final answers", kinds=(MATH,), populations=(ALL,)),
    "distinct_1": Measure("distinct-1"),
    "distinct_2": Measure("distinct-2"),
    "self_bleu": Measure("self-BLEU", sign=-1),
    "cosine_distance": Measure("embedding distance"),
    "vendi_score": Measure("Vendi score"),
}
JUDGE = "judge"
"""Stands beside :data:`MEASURES` where a judge's scores do."""


def measure_problem(
    samples: Samples, population: str, kind: str, draws: Sequence[int], embed: Embed | None
) -> dict[str, dict[int, float]]:
    """Each measure of one problem at each of ``draws`` that the population has enough answers for.

    Args:
        samples: of the problem.
        population: ``correct`` or ``all``.
        kind: of the benchmark's answers.
        draws: numbers m of answers to compare at.
        embed: texts to unit vectors; without it the measures of embeddings are left out.

    Returns:
        Measure -> m -> value. A measure of pairs doesn't depend on m, but for which problems have m answers.
    """
    responses = samples.only(population)
    draws = [m for m in draws if m <= len(responses)]
    if not draws or len(responses) < 2:
        return {}
    at = _functions(samples.problem, responses, kind, embed)
    result = {
        name: {m: at[name](m) for m in draws}
        for name, measure in MEASURES.items()
        if name in at and kind in measure.kinds and population in measure.populations
    }
    return {name: finite for name, values in result.items() if (finite := _finite(values))}


def _functions(
    problem: str, responses: Sequence[Response], kind: str, embed: Embed | None
) -> dict[str, Callable[[int], float]]:
    """Each measure as a function of the draws."""
    texts = [response.text for response in responses]
    forms = [solution_form(kind, response) for response in responses]
    pairs = sampled_pairs(len(texts), problem)
    bleu = self_bleu(texts, pairs)
    at: dict[str, Callable[[int], float]] = {
        "distinct_forms": lambda m: expected_distinct(forms, m),
        "distinct_answers": lambda m: expected_distinct([answer_form(response) for response in responses], m),
        "distinct_1": lambda m: distinct_n(texts, 1, m),
        "distinct_2": lambda m: distinct_n(texts, 2, m),
        "self_bleu": lambda m: bleu,
    }
    if kind == MATH:
        sets = [form if isinstance(form, frozenset) else frozenset({form}) for form in forms]
        jaccard = mean_jaccard_distance(sets, pairs)
        at["form_distance"] = lambda m: jaccard
    if embed:
        vectors = embed(texts)
        distance = mean_cosine_distance(vectors)
        at["cosine_distance"] = lambda m: distance
        at["vendi_score"] = lambda m: mean_over_subsets(
            lambda subset: vendi_score(vectors[list(subset)]), len(vectors), m, problem
        )
    return at


def collect(problems: Mapping[str, Mapping[str, Mapping[int, float]]]) -> Values:
    """Problem -> measure -> m -> value, turned into measure -> m -> problem -> value."""
    values: Values = {}
    for problem, measures in problems.items():
        for name, by_draws in measures.items():
            for m, value in by_draws.items():
                values.setdefault(name, {}).setdefault(str(m), {})[problem] = round(value, 6)
    return values


def summarise(values: Mapping[str, float]) -> dict[str, Any]:
    """The mean over problems, its 95% bootstrap interval, and how many problems it rests on."""
    mean, low, high = bootstrap(np.array([list(values.values())], dtype=float))
    return {"value": mean, "interval": [low, high], "problems": len(values)}


def _finite(values: Mapping[int, float]) -> dict[int, float]:
    return {m: value for m, value in values.items() if math.isfinite(value)}
