"""A language model as judge: how many of a problem's solutions follow the same approach, from 1 to 5.

The scale is the paper's (arXiv 2509.15207v3, App. E), the request is worded here; docs/tables.md lists the differences.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from recipe.flowrl.common.errors import UserError

SHARES = (14 / 16, 11 / 16, 7 / 16, 4 / 16)
"""Of the solutions, in the largest group of one approach: at least the first scores 1, ..., less than the last 5."""
FEWEST = 8
"""Solutions: with fewer, two of the scores would mean the same."""
MALFORMED_TRIES = 3
_HOPELESS = (401, 403, 404)

_REQUEST = """\
Here are a problem and {count} solutions to it, numbered 1 to {count}. How much do their approaches differ?

Sort the solutions into groups: two belong together if they rest on the same idea and take the same main steps. Other \
words, notation, layout, order of routine calculations or slips don't make another approach. Whether a solution is \
right doesn't matter. Each number belongs to exactly one group.

Then give the score that follows from the largest group:
1: {first} or more of the {count} solutions
2: {second}
3: {third}
4: {fourth}
5: {fifth} or fewer

# Problem

{problem}
{solutions}"""


class Group(BaseModel):
    """Solutions of one approach."""

    model_config = ConfigDict(extra="forbid")
    approach: str
    solutions: list[int]


class Verdict(BaseModel):
    """What the judge has to answer."""

    model_config = ConfigDict(extra="forbid")
    groups: list[Group]
    score: Literal[1, 2, 3, 4, 5]

    def contradicts_itself(self, count: int) -> bool:
        """Whether the groups don't hold each of ``count`` solutions once, or would give another score."""
        numbers = sorted(number for group in self.groups for number in group.solutions)
        if numbers != list(range(1, count + 1)):
            return True
        return self.score != score_of(max(len(group.solutions) for group in self.groups), count)


@dataclass(frozen=True)
class Outcome:
    """A verdict, or why there is none; the tokens that it cost either way, failed tries included."""

    verdict: Verdict | None
    error: str | None
    prompt_tokens: int = 0
    completion_tokens: int = 0


def lower_bounds(count: int) -> list[int]:
    """Sizes of the largest group from which on the scores are 1 to 4. Raises ValueError below :data:`FEWEST`."""
    if count < FEWEST:
        raise ValueError(f"the scale needs {FEWEST} solutions, got {count}")
    return [math.ceil(share * count) for share in SHARES]


def score_of(largest: int, count: int) -> int:
    """The score if ``largest`` of ``count`` solutions follow the same approach."""
    return 1 + sum(largest < bound for bound in lower_bounds(count))


def request(problem: str, solutions: Sequence[str]) -> str:
    """The text that the judge is asked, with the whole of every solution."""
    count = len(solutions)
    first, *others = lower_bounds(count)
    bands, above = [], first
    for bound in others:
        bands.append(f"{bound} to {above - 1}" if bound < above - 1 else str(bound))
        above = bound
    shown = "".join(f"\n# Solution {number}\n\n{text}\n" for number, text in enumerate(solutions, start=1))
    names = dict(zip(("second", "third", "fourth"), bands, strict=True))
    return _REQUEST.format(count=count, first=first, **names, fifth=above - 1, problem=problem.strip(), solutions=shown)


class Judge:
    """A model behind an OpenAI-compatible endpoint. Safe to use from several threads."""

    def __init__(self, url: str, model: str, key: str, retries: int = 6, timeout_s: float = 300.0) -> None:
        """``retries``: of a request that met a 408, 409, 429, 5xx or no answer, with exponential back-off."""
        from openai import OpenAI

        self._client = OpenAI(base_url=url, api_key=key, max_retries=retries, timeout=timeout_s)
        self._url, self._model = url, model

    def __call__(self, problem: str, solutions: Sequence[str]) -> Outcome:
        """Ask once; again if the answer isn't in the form asked for, up to :data:`MALFORMED_TRIES` times.

        Raises:
            UserError: the endpoint refuses every request: a wrong key, model or path.
        """
        from openai import APIConnectionError, APIStatusError

        spent = [0, 0]
        error = ""
        for _ in range(MALFORMED_TRIES):
            try:
                answer = self._client.chat.completions.create(**self._body(request(problem, solutions)))
            except APIStatusError as failure:
                if failure.status_code in _HOPELESS:
                    raise UserError(
                        f"judge={self._url}: status {failure.status_code} ({_short(failure.message)}); is judge_model="
                        f"{self._model} right, and OPENAI_API_KEY?"
                    ) from None
                return Outcome(None, f"status {failure.status_code}: {_short(failure.message)}", *spent)
            except APIConnectionError as failure:
                return Outcome(None, f"no answer: {type(failure).__name__}", *spent)
            except ValueError as failure:  # a body that isn't JSON
                error = f"malformed: {_short(str(failure))}"
                continue
            usage = getattr(answer, "usage", None)
            if usage:
                spent = [spent[0] + (usage.prompt_tokens or 0), spent[1] + (usage.completion_tokens or 0)]
            verdict, error = _read(answer)
            if verdict:
                return Outcome(verdict, None, *spent)
        return Outcome(None, error, *spent)

    def _body(self, text: str) -> dict[str, Any]:
        schema = {"name": "verdict", "strict": True, "schema": Verdict.model_json_schema()}
        return {
            "model": self._model,
            "messages": [{"role": "user", "content": text}],
            "temperature": 0.0,
            "response_format": {"type": "json_schema", "json_schema": schema},
        }


def _read(answer: Any) -> tuple[Verdict | None, str]:
    """The verdict in a completion, or what is wrong with it."""
    choice = answer.choices[0] if getattr(answer, "choices", None) else None
    if choice is None or choice.message is None:
        return None, "malformed: no choice"
    if getattr(choice.message, "refusal", None):
        return None, f"refused: {_short(choice.message.refusal)}"
    if choice.finish_reason == "length":
        return None, "malformed: cut off at the endpoint's limit of tokens"
    try:
        return Verdict.model_validate_json(choice.message.content or ""), ""
    except ValidationError as failure:
        return None, f"malformed: {_short(str(failure))}"


def _short(text: str) -> str:
    return " ".join(text.split())[:200]
