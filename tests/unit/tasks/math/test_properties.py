"""Any expression: another form never changes the verdict, another value always does."""

from fractions import Fraction

from hypothesis import given, settings
from hypothesis import strategies as st

from recipe.flowrl.tasks.math.equivalence import equal

Tree = tuple

_LEAVES = st.one_of(
    st.integers(1, 10**6).map(lambda n: ("n", n)),
    st.fractions(min_value=Fraction(1, 9), max_value=9, max_denominator=9).map(lambda q: ("q", q)),
    st.sampled_from("abxyz").map(lambda name: ("v", name)),
    st.integers(2, 30).map(lambda n: ("root", ("n", n))),
    st.just(("pi",)),
)
_TREES = st.recursive(
    _LEAVES,
    lambda inner: st.one_of(
        st.tuples(st.sampled_from(["+", "-", "*", "/"]), inner, inner),
        st.tuples(st.just("^"), inner, st.integers(2, 4)),
    ),
    max_leaves=6,
)
_FUNCTIONS = {"latex": "\\sqrt{%s}", "plain": "sqrt(%s)", "unicode": "√(%s)"}
_SUPERSCRIPTS = "⁰¹²³⁴⁵⁶⁷⁸⁹"


def write(tree: Tree, style: str, swapped: bool = False) -> str:
    """``tree`` in LaTeX, plain text or Unicode; ``swapped``: sums and products the other way round."""
    kind = tree[0]
    if kind in ("n", "v"):
        return str(tree[1])
    if kind == "pi":
        return {"latex": "\\pi", "plain": "pi", "unicode": "π"}[style]
    if kind == "q":
        parts = ("n", tree[1].numerator), ("n", tree[1].denominator)
        return write(parts[0], style) if tree[1].denominator == 1 else write(("/", *parts), style)
    if kind == "root":
        return _FUNCTIONS[style] % write(tree[1], style, swapped)
    if kind == "^":
        base = f"({write(tree[1], style, swapped)})"
        return base + (
            _SUPERSCRIPTS[tree[2]] if style == "unicode" else f"^{{{tree[2]}}}" if style == "latex" else f"**{tree[2]}"
        )
    left, right = (write(side, style, swapped) for side in tree[1:])
    if kind == "/" and style == "latex":
        return f"\\frac{{{left}}}{{{right}}}"
    if kind in "+*" and swapped:
        left, right = right, left
    sign = {"*": {"latex": "\\cdot", "plain": "*", "unicode": "×"}[style], "-": "−" if style == "unicode" else "-"}
    return f"({left}) {sign.get(kind, kind)} ({right})"


@settings(max_examples=150, deadline=None)
@given(_TREES)
def test_another_form_never_changes_the_verdict(tree: Tree) -> None:
    latex = write(tree, "latex")
    if not equal([latex + "+0"], latex):
        return  # it has no value: a division by zero
    forms = [write(tree, style, swapped) for style in ("latex", "plain", "unicode") for swapped in (False, True)]
    forms += [
        latex.replace("\\frac", "\\dfrac"),
        latex.replace("(", " \\left( ").replace(")", "\\right)"),
        f"q = {latex}",
    ]
    for form in forms:
        assert equal([latex], form) and equal([form], latex), form


@settings(max_examples=150, deadline=None)
@given(_TREES, st.sampled_from(["+1", "+10^{-30}", "-\\frac{1}{3006!}", "+\\sqrt{2}", "+w", "\\cdot 2", "+e^{-200}"]))
def test_another_value_always_changes_the_verdict(tree: Tree, change: str) -> None:
    latex = f"({write(tree, 'latex')})"
    if change == "\\cdot 2" and equal([latex], "0"):
        return
    for style in ("latex", "plain", "unicode"):
        other = f"({write(tree, style)}){change}"
        assert not equal([latex], other) and not equal([other], latex), other


@settings(deadline=None)
@given(st.integers(0, 10**40), st.integers(0, 12))
def test_a_decimal_is_the_number_that_it_writes(digits: int, places: int) -> None:
    text = str(digits).rjust(places + 1, "0")
    decimal = f"{text[:-places]}.{text[-places:]}" if places else text
    assert equal([rf"\frac{{{digits}}}{{{10**places}}}"], decimal)
    assert not equal([rf"\frac{{{digits + 1}}}{{{10**places}}}"], decimal)


@settings(deadline=None)
@given(st.lists(st.integers(-99, 99), min_size=2, max_size=5, unique=True), st.randoms())
def test_lists_and_sets_have_no_order_and_tuples_do(values: list[int], drawn) -> None:  # noqa: ANN001
    shuffled = list(values)
    drawn.shuffle(shuffled)
    first, second = (", ".join(map(str, items)) for items in (values, shuffled))
    assert equal([first], second) and equal([rf"\{{{first}\}}"], second) and equal([rf"x \in \{{{first}\}}"], second)
    assert equal([f"({first})"], f"({second})") == (values == shuffled)
    changed = ", ".join(map(str, [*shuffled[:-1], shuffled[-1] + 200]))
    assert not equal([first], changed) and not equal([rf"\{{{first}\}}"], changed)
