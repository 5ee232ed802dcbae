"""The nearest references and the six writings, on small samples; the public sets themselves where they are at hand."""

from itertools import pairwise

import pytest

from benchmarks.references import DATA, PAIR_SETS, nearest_pairs, reference_rows, writings
from recipe.flowrl.tasks.math.answers import strip_delimiters
from recipe.flowrl.tasks.math.equivalence import equal

SAMPLE = [
    r"\frac{3}{4}",
    r"-2\sqrt{3}+1",
    r"[\pi, 2\pi)",
    r"x^{2}-1",
    r"1\frac{1}{2}",
    "1,234",
    r"10\text{ cm}",
    "5",
    r"0.\overline{3}",
]


def test_the_nearest_are_those_of_the_smallest_edit_distance() -> None:
    pairs = nearest_pairs(["12", "123", "1234", "99", "x+1", "x+12"])
    assert [other for answer, other in pairs if answer == "12"][0] == "123"
    assert set(pairs) >= {("x+12", "x+1"), ("1234", "123"), ("99", "12")} and len(pairs) == 18
    assert [other for answer, other in pairs if answer == "99"] == ["12", "123", "x+1"]


@pytest.mark.parametrize("answer", SAMPLE)
def test_the_writings_of_a_sample_are_accepted(answer: str) -> None:
    forms = writings(answer)
    assert len(forms) >= 5 and all(equal([answer], form) for form in forms.values()), forms


def test_the_writings_differ_where_they_can() -> None:
    forms = writings(r"\frac{3}{4}")
    assert forms["plain"] == "((3)/(4))" and forms["decimal"] == "0.75" and forms["dfrac"] == r"\dfrac{3}{4}"
    assert writings(r"\sqrt{2}-x^{2}")["unicode"] == "√(2)−x²"
    assert "decimal" not in writings(r"\frac{1}{3}") and writings("12")["decimal"] == "12.0"


@pytest.mark.skipif(not DATA.is_dir(), reason=f"no {DATA}")
def test_references_of_public_sets_equal_themselves_and_not_the_next() -> None:
    answers = sorted({strip_delimiters(truth).replace(" ", "") for truth in reference_rows(PAIR_SETS)})[::5]
    assert len(answers) > 400 and all(equal([answer], f" {answer} ") for answer in answers)
    accepted = [pair for pair in pairwise(answers) if equal([pair[0]], pair[1])]
    assert len(accepted) <= 5, accepted
