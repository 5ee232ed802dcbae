"""The form of a solution: what is left of a response when its wording is taken away."""

import re
from collections.abc import Sequence

from recipe.flowrl.diversity.evaluations import CODE, COUNTDOWN, Response
from recipe.flowrl.diversity.programs import normal_program
from recipe.flowrl.tasks.code.reward import last_program
from recipe.flowrl.tasks.countdown.expressions import canonical_form
from recipe.flowrl.tasks.math.answers import strip_delimiters
from recipe.flowrl.tasks.math.equivalence import number

_LONGEST_SIDE = 200
"""Characters of an equation's side; longer ones are prose that an equals sign ended up in."""

_PLAIN = {
    r"\times": "*",
    r"\cdot": "*",
    r"\div": "/",
    "×": "*",
    "÷": "/",
    "−": "-",
    "–": "-",
    r"\left": "",
    r"\right": "",
}
_FRACTION = re.compile(r"\\[dt]?frac\{([^{}]*)\}\{([^{}]*)\}")
_DELIMITERS = re.compile(r"\\[()\[\]]|\\?\$|<<[^<>]*>>|\*\*")
"""Around mathematics, and GSM8K's calculator annotations, which repeat what stands beside them."""
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
_TIMES = re.compile(r"(?<=[\d)])\s*[xX]\s*(?=[\d(])")
_ZEROS = re.compile(r"(?<=\d)\.0+(?!\d)|(?<=\.\d)0+(?!\d)|(?<=\.\d[1-9])0+(?!\d)")
_UNIT = re.compile(r"(?<=\d)(?:(?:\s*/\s*|\s+)[A-Za-z]{2,}){1,3}(?=\s*[-+*/=])")
"""Of a number within an equation: ``20 packets * 40/packet = ...``."""
_OPERATORS = "+-*/^(){}_\\&|"
_EQUALS = re.compile(r"(?<![=<>!])=(?!=)")
_WORD = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{2,}")
_SYMBOL = re.compile(r"[0-9+*/^(){}\\_\-]|^[A-Za-z]$")


def solution_form(kind: str, response: Response) -> str | frozenset[str]:
    """What two responses share if they solve a problem in the same way.

    Args:
        kind: of the benchmark's answers.
        response: to any problem.

    Returns:
        For code the last program, normalised (:mod:`.programs`); for Countdown the canonical expression
        (:mod:`recipe.flowrl.tasks.countdown.expressions`); for mathematics the set of its equations, in canonical
        form. Where there is no such thing, or it can't be read, the text without spaces.
    """
    if kind == CODE:
        program = last_program(response.text)
        return (program and normal_program(program)) or _bare(program or response.text)
    if kind == COUNTDOWN:
        text = response.text.split("<|", 1)[0].strip()
        return canonical_form(text) or _bare(text)
    return equations(response.text) or _bare(response.text)


def equations(text: str) -> frozenset[str]:
    """The equations ``a = b`` in ``text``; arithmetic sides up to commutativity and associativity."""
    for latex, plain in _PLAIN.items():
        text = text.replace(latex, plain)
    text = _FRACTION.sub(r"(\1)/(\2)", _DELIMITERS.sub(" ", text))
    text = _UNIT.sub("", _TIMES.sub(" * ", _ZEROS.sub("", _THOUSANDS.sub("", text))))
    found = set()
    for line in text.splitlines():
        sides = _EQUALS.split(line)
        for before, after in zip(sides, sides[1:], strict=False):
            left, right = _end_of(before), _start_of(after)
            if left and right and max(len(left), len(right)) <= _LONGEST_SIDE:
                found.add(f"{_side(left)}={_side(right)}")
    return frozenset(found)


def answer_form(response: Response) -> str:
    """The final answer, equal for those that the grader takes for equal.

    Where it doesn't say, all right answers are one, and others are equal if their texts or numbers are.
    """
    if response.group is not None:
        return f"group {response.group}"
    if response.correct:
        return "right"
    if response.answer is None:
        return "none"
    text = strip_delimiters(response.answer)
    value = number(text)
    return f"wrong {_bare(text) if value is None else value.normalize()}"


def mean_jaccard_distance(sets: Sequence[frozenset[str]], pairs: Sequence[tuple[int, int]]) -> float:
    """Mean of 1 - |A and B| / |A or B| over ``pairs`` of ``sets``, none of them empty."""
    return sum(1 - len(sets[i] & sets[j]) / len(sets[i] | sets[j]) for i, j in pairs) / len(pairs)


def _side(text: str) -> str:
    return canonical_form(text) or _bare(text)


def _end_of(text: str) -> str:
    """The mathematics that ``text`` ends with; the last word if it ends with one, which is then a variable's name."""
    kept: list[str] = []
    for token in reversed(text.split()):
        if not _is_symbolic(token) or (kept and (token[-1] in ",;:.!?" or not _joined(token, kept[-1]))):
            break
        kept.append(token)
    return " ".join(reversed(kept)) or " ".join(text.split()[-1:])


def _start_of(text: str) -> str:
    """The mathematics that ``text`` begins with."""
    kept: list[str] = []
    for token in text.split():
        if not _is_symbolic(token) or (kept and not _joined(kept[-1], token)):
            break
        kept.append(token.rstrip(",;:.!?"))
        if kept[-1] != token:
            break
    return " ".join(kept)


def _joined(left: str, right: str) -> bool:
    """Whether an operator, a bracket or a command stands between two tokens: ``40 a`` are two things."""
    return left[-1] in _OPERATORS or right[0] in _OPERATORS or "\\" in left + right


def _is_symbolic(token: str) -> bool:
    return not _WORD.search(token) and bool(_SYMBOL.search(token.rstrip(",;:.!?")))


def _bare(text: str) -> str:
    return "".join(text.split())
