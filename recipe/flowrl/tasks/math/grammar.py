"""The grammar of answers: tokens to a structure, all of them or :class:`NotUnderstood`.

Items are tuples: ``("scalar", node, unit or None)``, ``("tuple", open, close, items)``, ``("set", items)``,
``("join", operator, item, item)`` for cup, cap and setminus, ``("builder", name, item)`` for ``{x | ...}``,
``("relation", item, operator, item, ...)``, ``("based", digits, base)``, ``("matrix", rows)``, ``("ratio", items)``,
``("space", name)`` for R, Z, N, Q, C, ``("words", text)``, ``("choice", letter, item or None)``,
``("list", items, separator)``, and ``("infinity", sign)``. Nodes of scalars: :mod:`.scalars`.
"""

import re
from fractions import Fraction
from typing import Any

from recipe.flowrl.tasks.math.expressions import ExpressionParser, NotUnderstood
from recipe.flowrl.tasks.math.notation import Token
from recipe.flowrl.tasks.math.rational import Node, Undecided, exact, number, variables
from recipe.flowrl.tasks.math.scalars import equal
from recipe.flowrl.tasks.math.units import NUMBER_WORDS, SIGN_WORDS, unit

Item = tuple[Any, ...]

RELATIONS = {"=", "<", ">", "le", "ge", "ne", "in", "approx", "equiv"}
_BASES = {
    word: str(base)
    for base, word in enumerate("two three four five six seven eight nine ten eleven twelve".split(), start=2)
}
_MATRICES = frozenset("matrix pmatrix bmatrix vmatrix Bmatrix array".split())
_ALL_REALS = ("all real numbers", "all reals", "real numbers")
_MOST_PLACES = 30
_NEGATED = ("mul", number(-1))


def parse(tokens: list[Token]) -> Item:
    """The structure of an answer.

    Raises:
        NotUnderstood: some token has no place in it.
    """
    if _is_date_or_time(tokens):
        raise NotUnderstood("a date or a time")
    parser = _Parser(tokens)
    item = parser.answer()
    parser.end()
    return item


def _is_date_or_time(tokens: list[Token]) -> bool:
    """Whether a number with a zero before it stands beside a sign, as in 2023-01-02, 01/02 or 12:05."""

    def padded(token: Token) -> bool:
        return token.kind == "number" and len(token.text) > 1 and token.text[0] == "0" and token.text.isdigit()

    def sign(token: Token) -> bool:
        return token.kind == "symbol" and token.text in ("-", "/", ":")

    pairs = list(zip(tokens, tokens[1:], strict=False))
    beside = any(padded(one) and sign(other) or sign(one) and padded(other) for one, other in pairs)
    return beside and all(token.kind == "number" or sign(token) for token in tokens) and tokens[0].kind == "number"


class _Parser(ExpressionParser):
    def answer(self) -> Item:
        if not self.tokens:
            raise NotUnderstood("nothing")
        if (letter := self._option()) is not None:
            return ("choice", letter, self.answer() if self.at < len(self.tokens) else None)
        if all(token.kind == "letter" and token.text.isupper() for token in self.tokens) and len(self.tokens) > 1:
            if not any(token.spaced for token in self.tokens[1:]):  # IV isn't VI
                self.at = len(self.tokens)
                return ("words", "".join(token.text for token in self.tokens))
        if all(token.kind == "text" for token in self.tokens):
            self.at = len(self.tokens)
            text = " ".join(token.text for token in self.tokens)
            return ("space", "R") if text.casefold() in _ALL_REALS else ("words", text)
        self.take("approx")
        return self.items()

    def _option(self) -> str | None:
        """``(B)`` or ``B.`` or ``B:`` before a value, or ``(B)`` alone."""
        letter = self.peek(1) if self.is_("(") else self.peek()
        if letter.kind != "letter" or letter.text not in "ABCDEFGHIJ":
            return None
        rest = len(self.tokens) - self.at
        if self.is_("(") and self.is_(")", offset=2):
            after = self.peek(3)
            if rest == 3 or after.spaced or after.text in ":.":
                self.at += 3
                self.take(":", ".")
                return letter.text
        elif self.is_(".", ":", ")", offset=1) and rest > 2:
            self.at += 2
            return letter.text
        return None

    def items(self, closing: bool = False) -> Item:
        """Items between commas, or words that mean or; one alone is itself."""
        found, separators = [self.item()], set()
        while True:
            separator = self._separator()
            if separator is None:
                break
            separators.add(separator)
            found.append(self.item())
        if len(found) == 1:
            return found[0]
        if len(separators - {","}) > 1:
            raise NotUnderstood("several kinds of separators")
        if closing and separators != {","}:
            raise NotUnderstood("words in brackets")
        return ("list", tuple(found), max(separators, key=len))

    def _separator(self) -> str | None:
        found = None
        while self.is_(",", ";") and found is None or self._is_word("or", "and"):
            found = "or" if self._is_word("or") else "and" if self._is_word("and") else ","
            self.at += 1
        return found

    def _is_word(self, *words: str) -> bool:
        return self.peek().kind == "text" and self.peek().text in words

    def item(self) -> Item:
        item = self.relation()
        while self.is_("cup", "cap") and item[0] == "relation":  # of inequalities
            operator = self.peek().text
            self.at += 1
            item = ("join", operator, item, self.relation())
        if not self.is_(":") or item[0] != "scalar":
            return item
        parts = [item]
        while self.take(":"):
            parts.append(self.operand())
        return ("ratio", tuple(parts))

    def relation(self) -> Item:
        sides: list[Any] = [self.union()]
        while self.is_(*RELATIONS):
            operator = self.peek().text
            self.at += 1
            if operator in ("in", "=", "approx", "equiv"):
                side = self.union(braces=operator == "in")
            else:
                side = self.operand()
            if operator in ("=", "approx") and _repeats(sides[-1], side, operator):
                if operator == "=" and side[2]:
                    sides[-1] = side  # the one with the unit
                continue
            sides += ["=" if operator in ("approx", "equiv") else operator, side]
        return ("relation", *sides) if len(sides) > 1 else sides[0]

    def union(self, braces: bool = False) -> Item:
        item = self.operand(braces)
        while self.is_("cup", "cap", "setminus"):
            operator = self.peek().text
            self.at += 1
            item = ("set", item[1]) if item[0] == "list" else item  # braces without backslashes
            item = ("join", operator, item, self.operand(braces=True))
        return item

    def operand(self, braces: bool = False) -> Item:
        """One side of a relation or a union. ``braces``: without backslashes they are a set's here."""
        token = self.peek()
        if self.is_("ldots") and (self.is_(",", ")", "]", "}", offset=1) or self.peek(1).kind == "end"):
            self.at += 1  # in a list, not in a sum: 1 + ... + 7 isn't 2 + ... + 6
            return ("words", "...")
        if self.take("emptyset"):
            return ("set", ())
        if token.kind == "command" and token.text in ("R", "Z", "N", "Q", "C"):
            self.at += 1
            return ("space", token.text)
        if self.is_("{") and (braces or token.kind == "command"):
            self.at += 1
            return self._set()
        if token.kind == "text":
            self.at += 1
            return ("words", token.text)
        if (based := self._based()) is not None:
            return based
        if self.is_("{", "(", "[", "]", "langle") and (found := self._bracketed()) is not None:
            return found
        if self.is_("begin"):
            return self._matrix()
        node = self.sum()
        return self._finished(node)

    def _finished(self, node: Node) -> Item:
        """A scalar with what stands behind it: numbers in words, signs in words, a unit."""
        while self.peek().kind == "text" and self.peek().text in NUMBER_WORDS | SIGN_WORDS:
            word = self.peek().text
            self.at += 1
            node = ("mul", node, number(NUMBER_WORDS[word]) if word in NUMBER_WORDS else (SIGN_WORDS[word],))
        sign = _infinity(node)
        if sign:
            return ("infinity", sign)
        scale, self.scale = self.scale, None
        return ("scalar", node, scale or self._unit())

    def _unit(self) -> str | None:
        names: list[str] = []
        while self.peek().kind == "text" and (name := unit(self.peek().text)) is not None:
            self.at += 1
            names.append(name + self._unit_power())
            if self.is_("/", "cdot") and self.peek(1).kind == "text":
                names.append("/" if self.is_("/") else "*")
                self.at += 1
        return " ".join(names) or None

    def _unit_power(self) -> str:
        if not self.take("^"):
            return ""
        braces = self.take("{")
        sign = "-" if self.take("-") else ""
        if self.peek().kind != "number":
            raise NotUnderstood("a unit's power")
        self.at += 1
        power = self.tokens[self.at - 1].text
        if braces:
            self.need("}")
        return f"^{sign}{power}"

    # sets, tuples, matrices, bases

    def _set(self) -> Item:
        if self.take("}"):
            return ("set", ())
        start, self.bars = self.at, self.bars + 1  # a bar ends the name
        name = self.relation()
        self.bars -= 1
        if self.take("|", "mid", ":"):
            condition = self.items()
            self.need("}")
            return ("builder", name, condition)
        self.at = start
        first = self.items()
        self.need("}")
        return ("set", first[1] if first[0] == "list" else (first,))

    def _bracketed(self) -> Item | None:
        """A tuple or an interval; None, and nothing taken, where the bracket holds one scalar of a larger term."""
        start = self.at
        left = self.need("{", "(", "[", "]", "langle")
        self._deeper()
        before, self.reversed = self.reversed, left == "]"
        try:
            inner = self.items(closing=True)
        except NotUnderstood:
            if left == "]":
                raise
            self.at = start
            return None
        finally:
            self.depth -= 1
            self.reversed = before
        right = self.peek().text if self.is_("}", ")", "]", "[", "rangle") else None
        if left == "{" and right != "}":
            right = None
        if right is None or inner[0] == "scalar":
            self.at = start
            return None
        self.at += 1
        if left == "{":  # braces that only group
            return inner
        if inner[0] == "list":
            return (
                "tuple",
                {"langle": "(", "]": "("}.get(left, left),
                {"rangle": ")", "[": ")"}.get(right, right),
                inner[1],
            )
        if (left, right) in (("(", ")"), ("[", "]")) and inner[0] != "infinity":
            return inner
        raise NotUnderstood("brackets")

    def _environment(self) -> str:
        self.need("{")
        name = ""
        while not self.take("}"):
            name += self.peek().text
            self.at += 1
            if len(name) > 20 or self.peek().kind == "end":
                raise NotUnderstood("an environment")
        return name

    def _matrix(self) -> Item:
        self.need("begin")
        name = self._environment()
        if name not in _MATRICES:
            raise NotUnderstood(name)
        if name == "array":
            self._environment()
        rows: list[list[Item]] = [[]]
        while not self.take("end"):
            if self.take("\\"):
                rows.append([])
            elif rows[-1]:
                self.need("&")
                rows[-1].append(self.item())
            else:
                rows[-1].append(self.item())
        if self._environment() != name:
            raise NotUnderstood("an environment")
        kind = "determinant" if name == "vmatrix" else "matrix"
        return (kind, tuple(tuple(row) for row in rows if row))

    def _based(self) -> Item | None:
        """``2042_5``, ``(2042)_5``, ``2042_{five}``, ``2042 base 5``, and the same with letters as digits."""
        start, digits = self.at, ""
        minus = "-" if self.take("-") else ""
        parenthesis = self.take("(")
        while self.peek().kind in ("number", "letter") and (not digits or not self.peek().spaced):
            digits += self.peek().text
            self.at += 1
        closed = not parenthesis or self.take(")")
        if closed and digits and (digits[0].isdigit() or parenthesis and any(map(str.isdigit, digits))):
            if self.take("_"):
                base = self._base()
            elif (match := re.fullmatch(r"(?:in )?base[ -](\w+)", self._word())) is not None:
                self.at += 1
                base = _BASES.get(match[1], match[1])
            elif self._word() in ("base", "in base") and self.peek(1).kind == "number":
                base = self.peek(1).text
                self.at += 2
            else:
                base = ""
            if base.isdigit() and re.fullmatch(r"[0-9A-Z]+(\.[0-9A-Z]+)?", digits) and _fit(digits, int(base)):
                return self._of_base(minus, digits, base)
        self.at = start
        return None

    @staticmethod
    def _of_base(minus: str, digits: str, base: str) -> Item:
        if base == "10":
            return ("scalar", number(Fraction(minus + digits)), None)
        return ("based", minus + (digits.lstrip("0") or "0"), base)

    def _word(self) -> str:
        return self.peek().text if self.peek().kind == "text" else ""

    def _base(self) -> str:
        content = ""
        if self.take("{"):
            while not self.take("}"):
                if self.peek().kind == "end":
                    raise NotUnderstood("a base")
                content += self.peek().text
                self.at += 1
        else:
            content = self.peek().text
            self.at += 1
        content = content.strip("()").removeprefix("base").strip()
        return _BASES.get(content, content)


def _fit(digits: str, base: int) -> bool:
    """Digits are taken as they are, wrong ones as well; letters must be digits of the base."""
    return digits.replace(".", "").isdigit() or all(int(digit, 36) < base for digit in digits if digit != ".")


def _repeats(value: Item, other: Item, operator: str) -> bool:
    """Whether ``other`` only says again what the constant ``value`` is, or by ``approx`` what it is when rounded."""
    if value[0] != "scalar" or other[0] != "scalar" or value[2] and other[2] not in (None, value[2]):
        return False
    if variables(value[1]) | variables(other[1]):
        return False
    if operator == "=":
        return value[1] != other[1] and equal(value[1], other[1])  # 1=1 is no computation
    try:
        rounded = exact(other[1])
    except Undecided:
        return False
    for places in range(_MOST_PLACES):
        if rounded is not None and (rounded * 10**places).denominator == 1:
            return equal(value[1], other[1], 0.5 * 10.0**-places)
    return False


def _infinity(node: Node) -> int:
    if node == ("inf",):
        return 1
    return -1 if node == (*_NEGATED, ("inf",)) else 0
