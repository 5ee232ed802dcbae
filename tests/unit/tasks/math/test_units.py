"""The table of what is dropped, a test a row: it may be missing on one side, not stand for something else."""

import pytest

from recipe.flowrl.tasks.math.equivalence import equal
from recipe.flowrl.tasks.math.units import MEANING, NUMBER_WORDS, UNITS, unit

DROPPED = [
    (r"x = 5", "5"),
    (r"f(x) = 5", "5"),
    (r"AB = 5", "5"),
    (r"\angle ABC = 5", "5"),
    (r"\text{Area} = 5", "5"),
    (r"x \approx 5", "5"),
    (r"\approx 5", "5"),
    (r"5 = x", "5"),
    (r"x \in \{5\}", r"\{5\}"),
    (r"\$5", "5"),
    (r"5\%", "5"),
    (r"5^\circ", "5"),
    (r"5\text{ degrees}", "5"),
    (r"5\text{ percent}", "5"),
    (r"5\text{ apples}", "5"),
    ("5 apples", "5"),
    (r"5\text{ cm}^2", "5"),
    (r"5\text{ km/h}", "5"),
    (r"5^\circ C", "5"),
]


@pytest.mark.parametrize(("written", "value"), DROPPED)
def test_a_row_of_the_table_is_dropped(written: str, value: str) -> None:
    assert equal([written], value) and equal([value], written)
    other = value.replace("5", "6")
    assert not equal([written], other) and not equal([other], written)


@pytest.mark.parametrize("name", [name for unit, names in UNITS.items() for name in (unit, *names)])
def test_a_unit_may_be_left_out_but_not_replaced(name: str) -> None:
    written = rf"5\text{{ {name}}}"
    assert equal([written], "5") and equal(["5"], written)
    assert not equal([written], "6")
    other = "kg" if unit(name) != "kg" else "km"
    assert not equal([written], rf"5\text{{ {other}}}")


@pytest.mark.parametrize(("unit", "names"), UNITS.items())
def test_the_names_of_a_unit_are_one(unit: str, names: tuple[str, ...]) -> None:
    assert all(equal([rf"5\text{{ {unit}}}"], rf"5\text{{ {name}}}") for name in names)


@pytest.mark.parametrize("letter", "abcdfghjklmnopqrstuvwxyzABCDKJLNVW")
def test_a_variable_is_never_dropped(letter: str) -> None:
    assert not equal([f"5{letter}"], "5") and not equal(["5"], f"5{letter}") and not equal([f"5 {letter}"], "5")


@pytest.mark.parametrize("word", sorted(MEANING))
def test_a_word_that_means_something_is_never_dropped(word: str) -> None:
    assert not equal([rf"5\text{{ {word}}}"], "5") and not equal(["5"], f"5 {word}")


@pytest.mark.parametrize(("word", "factor"), NUMBER_WORDS.items())
def test_a_number_in_words_is_a_factor(word: str, factor: int) -> None:
    assert equal([rf"5\text{{ {word}}}"], str(5 * factor)) and not equal([rf"5\text{{ {word}}}"], "5")
