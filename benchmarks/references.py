"""The reference answers of public mathematics sets: against their nearest neighbours, and in six writings.

Two references are different if they differ after spaces and the size of fractions (``\\dfrac``) are taken away.
"""

import gzip
import json
import re
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from recipe.flowrl.common.progress import Progress
from recipe.flowrl.common.project import PROJECT
from recipe.flowrl.tasks.math.answers import strip_delimiters
from recipe.flowrl.tasks.math.data import math_task
from recipe.flowrl.tasks.math.equivalence import is_understood
from recipe.flowrl.tasks.math.reward import references
from recipe.flowrl.tasks.math.worker_pool import OverLimit, WorkerPool
from recipe.flowrl.tasks.task import Malformed

DATA = PROJECT.parent / "shared" / "data"
NEAREST = 3
LIMIT_S = 5.0
"""Seconds of CPU time for a comparison, as in a run: no pair can hold the benchmark up."""

PAIR_SETS = ("math/test.jsonl.gz", "olympiadbench/test.jsonl.gz")
SETS = (
    *PAIR_SETS,
    "dapo_math_17k/train.parquet",
    "deepscaler/train_10k.parquet",
    "math/train_rllm.json.gz",
    "math500/test.jsonl.gz",
    "minerva_math/test.jsonl.gz",
    "aime24/test.jsonl",
    "aime25/test.jsonl",
    "amc23/test.jsonl",
    "gsm8k/test.jsonl.gz",
    "rllm_math/train_aime.json.gz",
)

_SUPERSCRIPTS = str.maketrans("0123456789-+", "⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺")
_POWER = re.compile(r"\^(?:\{([-+]?\d+)\}|(\d)(?!\d))")
_SPACEABLE = re.compile(r"(\\(?:text|mbox|textnormal|begin|end)\s*\{[^{}]*\}|\{,\}|\d[eE]-?\d|\\.)|([=+*/(){}<>^_-])")
_MIXED = re.compile(r"(?<=\d)\s*\\[dt]?frac\{(\d+)\}\{(\d+)\}")
_FRACTION = re.compile(r"\\[dt]?frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}")
_ARGUMENT = re.compile(r"\\(?:sin|cos|tan|sec|csc|cot|ln|log)\s*\\[dt]?frac")
"""In brackets the fraction would be the whole argument."""
_ROOT = re.compile(r"\\sqrt\s*\{([^{}]*)\}")
_SIZES = re.compile(r"\\(?:left|right)(?![A-Za-z])")
_PLAIN = {r"\pi": " pi", r"\infty": "infinity", r"\cdot": "*", r"\times": "*", r"\leq": "<=", r"\geq": ">=", r"\%": "%"}
_UNICODE = {
    r"\pi": "π",
    r"\infty": "∞",
    r"\cdot": "·",
    r"\times": "×",
    r"\leq": "≤",
    r"\le": "≤",
    r"\geq": "≥",
    r"\ge": "≥",
    r"\pm": "±",
    r"\cup": "∪",
    r"\in": "∈",
    r"\theta": "θ",
    r"\alpha": "α",
    r"\%": "%",
}


def nearest_pairs(answers: Sequence[str]) -> list[tuple[str, str]]:
    """Each of ``answers`` with its three nearest by edit distance, the first ones where several are as near."""
    kinds = [sum(1 << bit for bit in {ord(character) % 128 for character in answer}) for answer in answers]
    pairs = []
    for index, answer in enumerate(answers):
        distance = _distances_from(answer)
        order = sorted(
            (_least_distance(answer, other, kinds[index], kinds[i]), i) for i, other in enumerate(answers) if i != index
        )
        best: list[tuple[int, int]] = []
        for least, other in order:
            if len(best) == NEAREST and least > best[-1][0]:
                break
            best = sorted([*best, (distance(answers[other]), other)])[:NEAREST]
        pairs += [(answer, answers[other]) for _, other in best]
    return pairs


def _least_distance(first: str, second: str, kinds: int, other_kinds: int) -> int:
    """A bound from below: the lengths differ, and each kind of character that only one has takes an edit."""
    only = max((kinds & ~other_kinds).bit_count(), (other_kinds & ~kinds).bit_count())
    return max(abs(len(first) - len(second)), only)


def _distances_from(pattern: str) -> Callable[[str], int]:
    """Edit distance to ``pattern``, a column of the table at once in the bits of an integer (Hyyrö 2003)."""
    positions: dict[str, int] = {}
    for index, character in enumerate(pattern):
        positions[character] = positions.get(character, 0) | 1 << index
    ones, last = (1 << len(pattern)) - 1, 1 << max(0, len(pattern) - 1)

    def distance(text: str) -> int:
        plus, minus, score = ones, 0, len(pattern)
        for character in text:
            equal_bits = positions.get(character, 0)
            vertical = equal_bits | minus
            horizontal = (((equal_bits & plus) + plus) ^ plus) | equal_bits
            more, less = minus | ~(horizontal | plus) & ones, plus & horizontal
            score += bool(more & last) - bool(less & last)
            more, less = more << 1 | 1, less << 1
            plus, minus = (less | ~(vertical | more)) & ones, more & vertical & ones
        return score

    return distance


def writings(answer: str) -> dict[str, str]:
    """``answer`` in the six writings; without one that it doesn't have."""
    forms = {
        "latex": answer,
        "plain": _plain(answer),
        "unicode": _unicode(answer),
        "spaces": _SPACEABLE.sub(lambda match: match[1] or f" {match[2]} ", answer),
        "dfrac": answer.replace("\\frac", "\\dfrac").replace("\\tfrac", "\\dfrac"),
    }
    if (decimal := _decimal(answer)) is not None:
        forms["decimal"] = decimal
    return forms


def _plain(answer: str) -> str:
    text, previous = _MIXED.sub(r" \1/\2", _SIZES.sub("", answer)), None
    while text != previous and not _ARGUMENT.search(answer):
        previous = text
        text = _ROOT.sub(r" sqrt(\1)", _FRACTION.sub(r"((\1)/(\2))", text))
    for latex, plain in _PLAIN.items():
        text = re.sub(re.escape(latex) + r"(?![A-Za-z])", plain, text)
    return text.strip()


def _unicode(answer: str) -> str:
    text = _POWER.sub(lambda match: (match[1] or match[2]).translate(_SUPERSCRIPTS), _SIZES.sub("", answer))
    text = re.sub(r"\^\{?\\circ\}?", "°", _ROOT.sub(r"√(\1)", text))
    for latex, character in _UNICODE.items():
        text = re.sub(re.escape(latex) + r"(?![A-Za-z])", character, text)
    return text.replace("-", "−")


def _decimal(answer: str) -> str | None:
    """A fraction of integers as a decimal, an integer with a zero behind the point; None if it has none."""
    match = re.fullmatch(r"(-?)\\[dt]?frac\{(\d{1,9})\}\{(\d{1,9})\}|(-?\d{1,30})", answer)
    if match is None or match[3] and int(match[3]) == 0:
        return None
    if match[4]:
        return match[4] + ".0"
    value = Fraction(int(match[2]), int(match[3]))
    for places in range(10):
        scaled = value * 10**places
        if scaled.denominator == 1:
            digits = str(scaled.numerator).rjust(places + 1, "0")
            return match[1] + (f"{digits[:-places]}.{digits[-places:]}" if places else digits)
    return None


def reference_rows(names: Sequence[str]) -> Iterator[str]:
    """The references of some sets, row by row; rows without one, as ``prepare_data`` drops, are left out.

    Raises:
        FileNotFoundError: a set isn't there.
    """
    for name in names:
        for row in _rows(DATA / name):
            try:
                yield math_task(row).ground_truth
            except Malformed:
                continue


def _rows(path: Path) -> list[dict[str, Any]]:
    if path.suffix == ".parquet":
        return pq.read_table(path).to_pylist()
    text = gzip.open(path, "rt").read() if path.suffix == ".gz" else path.read_text()
    return json.loads(text) if ".json" in path.suffixes else [json.loads(line) for line in text.splitlines() if line]


def measure_pairs(say: Callable[[str], None]) -> dict[str, Any]:
    """``references``, ``pairs``; ``accepted``: the pairs taken for equal, for the reader to judge; ``over_limit``."""
    distinct: dict[str, str] = {}
    for truth in reference_rows(PAIR_SETS):
        text = strip_delimiters(truth)
        distinct.setdefault(re.sub(r"\s", "", re.sub(r"\\[dt]frac", r"\\frac", text)), text)
    answers = sorted(distinct.values())
    pairs = nearest_pairs(answers)
    with _Comparison(say, "near pairs", len(pairs)) as comparison:
        accepted = [[first, second] for first, second in pairs if comparison.next_accepts(first, second)]
    return {
        "references": len(answers),
        "pairs": len(pairs),
        "accepted": accepted,
        "over_limit": comparison.over_limit,
    }


def measure_writings(say: Callable[[str], None]) -> dict[str, Any]:
    """``references``; for each writing how many have it and which of them aren't accepted as themselves.

    ``not_understood``: distinct references that equal their own text alone, and so have no other writing.
    """
    rows = list(reference_rows(SETS))
    counts: dict[str, int] = {}
    refused: dict[str, list[list[str]]] = {}
    not_understood = []
    verdicts: dict[str, dict[str, tuple[str, bool]]] = {}
    with _Comparison(say, "references in six writings", len(set(rows))) as comparison:
        for truth in rows:
            if truth not in verdicts:
                answer = strip_delimiters(references(truth)[0])
                forms = writings(answer)
                if not is_understood(answer):
                    not_understood.append(answer)
                    forms = {"latex": answer, "spaces": forms["spaces"]}
                verdicts[truth] = {name: (form, comparison.accepts(answer, form)) for name, form in forms.items()}
                comparison.progress.add()
            for name, (form, accepted) in verdicts[truth].items():
                counts[name] = counts.get(name, 0) + 1
                if not accepted:
                    refused.setdefault(name, []).append([truth, form])
    return {
        "references": len(rows),
        "distinct": len(verdicts),
        "written": counts,
        "refused": refused,
        "not_understood": not_understood,
        "over_limit": comparison.over_limit,
    }


class _Comparison:
    """Compares in a worker, as a run does, and keeps what took more than :data:`LIMIT_S`."""

    def __init__(self, say: Callable[[str], None], what: str, total: int) -> None:
        self.progress = Progress(say, what, total, unit="")
        self.over_limit: list[list[str]] = []
        self._pool = WorkerPool("recipe.flowrl.tasks.math.equivalence", 1, LIMIT_S)

    def __enter__(self) -> "_Comparison":
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.close()

    def accepts(self, reference: str, form: str) -> bool:
        try:
            return self._pool.ask({"references": [reference], "answer": strip_delimiters(form)})["equal"]
        except OverLimit:
            self.over_limit.append([reference, form])
            return False

    def next_accepts(self, first: str, second: str) -> bool:
        self.progress.add()
        return self.accepts(first, second)
