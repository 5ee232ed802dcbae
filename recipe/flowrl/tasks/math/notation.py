"""Tokens of a mathematical answer, whichever of LaTeX, Unicode, plain text or program notation it is written in."""

import re
import unicodedata
from dataclasses import dataclass
from fractions import Fraction

from recipe.flowrl.tasks.math.rational import INTEGER_FUNCTIONS
from recipe.flowrl.tasks.math.scalars import FUNCTIONS
from recipe.flowrl.tasks.math.units import MEANING, is_listed


@dataclass(frozen=True)
class Token:
    """``kind`` is number, letter, command, symbol or text.

    ``spaced``: white space stands before it. ``value`` of a number. ``grouped``: a number written with bare commas.
    """

    kind: str
    text: str
    spaced: bool = False
    value: Fraction | None = None
    grouped: bool = False

    @property
    def identity(self) -> str:
        """What tells the token from others where it stands for nothing: in an index ``1,234`` is not 1234."""
        return f"{self.text}," if self.grouped else self.text


_SUPERSCRIPT = dict(zip("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁽⁾ⁿⁱ", "0123456789+-()ni", strict=True))
_SUBSCRIPT = dict(zip("₀₁₂₃₄₅₆₇₈₉₊₋₍₎ₙᵢₖ", "0123456789+-()nik", strict=True))
_GREEK = (
    "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi omicron pi rho sigmaf sigma tau upsilon "
    "phi chi psi omega"
).split()
_UNICODE = {
    **{chr(0x3B1 + i): f"\\{name} " for i, name in enumerate(_GREEK)},
    **{chr(0x391 + i): f"\\{name.capitalize()} " for i, name in enumerate(_GREEK) if name != "sigmaf"},
    "ϕ": r"\phi ",
    "√": r"\sqrt ",
    "∛": r"\sqrt[3]",
    "∜": r"\sqrt[4]",
    "∞": r"\infty ",
    "π": r"\pi ",
    "×": r"\times ",
    "·": r"\cdot ",
    "⋅": r"\cdot ",
    "∙": r"\cdot ",
    "∗": r"\cdot ",
    "÷": r"\div ",
    "⁄": "/",
    "∕": "/",
    "−": "-",
    "–": "-",
    "—": "-",
    "‐": "-",
    "‑": "-",
    "±": r"\pm ",
    "∓": r"\mp ",
    "≤": r"\le ",
    "⩽": r"\le ",
    "≦": r"\le ",
    "≥": r"\ge ",
    "⩾": r"\ge ",
    "≧": r"\ge ",
    "≠": r"\ne ",
    "≈": r"\approx ",
    "∈": r"\in ",
    "∪": r"\cup ",
    "∩": r"\cap ",
    "∖": r"\setminus ",
    "∅": r"\emptyset ",
    "ℝ": r"\R ",
    "ℤ": r"\Z ",
    "ℕ": r"\N ",
    "ℚ": r"\Q ",
    "ℂ": r"\C ",
    "°": r"^\circ ",
    "º": r"^\circ ",
    "⌊": r"\lfloor ",
    "⌋": r"\rfloor ",
    "⌈": r"\lceil ",
    "⌉": r"\rceil ",
    "⟨": r"\langle ",
    "⟩": r"\rangle ",
    "〈": r"\langle ",
    "〉": r"\rangle ",
    "∠": r"\angle ",
    "∣": r"\mid ",
    "′": "'",
    "’": "'",
    "\u2009": r"\,",
    "\u202f": r"\,",
    "\u00a0": r"\,",
    "。": ".",
    "、": ",",
    "\u200b": "",
    "\ufeff": "",
    "ℯ": "e",
    "∨": r"\lor ",
    "∧": r"\land ",
}
_TRANSLATION = str.maketrans(_UNICODE)
_SUPERSCRIPTS = re.compile(f"[{''.join(map(re.escape, _SUPERSCRIPT))}]+")
_SUBSCRIPTS = re.compile(f"[{''.join(map(re.escape, _SUBSCRIPT))}]+")
_OVERLINED = re.compile("((?:\\d[\u0304\u0305])+)")
_DOTTED = re.compile("\\d\u0307")
_TIMES = re.compile(r"(?<=\d)(?:\s+[xX]\s+|[xX])(?=10\s*(?:\^|\*\*))")
_PROGRAM = re.compile(r"(?<![\w.\\])(?:np|numpy|math|sympy|sp)\.(?=[A-Za-z])")
_PROGRAM_BASE = re.compile(r"(?<![\w.\\])(?:(?:np|numpy|math)\.)?log(10|2)(?=\s*\()")
_PROGRAM_LOG = re.compile(r"(?<![\w.\\])(?:np|numpy|math|sympy|sp)\.log(?![A-Za-z0-9_])")

_DOUBLED = re.compile(r"\\\\(?=[A-Za-z]{2})")
"""Of a text that was escaped twice. Within an environment it ends a row."""

_SIZES = re.compile(
    r"\\(?:left|right|middle|[bB]ig{1,2}[lrm]?|displaystyle|textstyle|limits|nolimits|mathstrut|strut)(?![A-Za-z])\.?"
)
_STYLES = re.compile(r"\\(?:mathbf|mathit|boldsymbol|bm|mathsf|mathnormal|ensuremath|pmb)(?![A-Za-z])")
_STYLED = re.compile(_STYLES.pattern + r"\s*\{([^{}]*)\}")
_SETS = re.compile(r"\\(?:mathbb|mathbf|mathrm|Bbb)\s*(?:\{\s*([RZNQC])\s*\}|([RZNQC])(?![A-Za-z]))")
_SPACE = re.compile(r"(?:\s|~|\\[,;:!> ]|\\q?quad(?![A-Za-z])|\\hspace\*?\{[^{}]*\})+")
_TEXT = re.compile(r"\\(?:text(?:bf|it|rm|normal|sf|tt|up)?|mbox|hbox|emph)\s*\{([^{}]*)\}")
_UPRIGHT = re.compile(r"\\(?:mathrm|operatorname\*?|rm|mathop)\s*\{([^{}]*)\}")
_COMMAND = re.compile(r"\\(?:[A-Za-z]+|.)")
_SYMBOL = re.compile(r"<=|>=|!=|==|\*\*|->|\.\.\.|[^\sA-Za-z0-9\\]")
_WORD = re.compile(r"[A-Za-z]+")
_CONJUNCTION = re.compile(r"([,;]?)\s*(and|or|AND|OR)\s*([,;]?)")
_INFIX = re.compile(r"(\{|^)([^{}]*?)\\(over|choose)(?![A-Za-z])([^{}]*)(\}|$)")
_PHANTOM = re.compile(r"\\[hv]?phantom\s*(?:\{[^{}]*\}|.)")
_PRIME = re.compile(r"\^\s*(?:\{((?:\s|\\prime)+)\}|\\prime(?![A-Za-z]))")
_REPEATING = re.compile(
    r"(\d*)\.(\d*)(?:\\(?:overline|bar)\s*(?:\{\s*(\d+)\s*\}|(\d))|\((\d+)\)|\\dot\s*\{?(\d)\}?(?:(\d*)\\dot\s*\{?(\d)\}?)?)"
)
_LATEX_COMMAS = r"(?:\s*\{\s*,\s*\}|,?(?:\\[,! ])+|~)"
_THOUSANDS = re.compile(
    rf"\d{{1,3}}(?:{_LATEX_COMMAS}\s*\d{{3}})+(?!\d)(?:\.\d+)?|\d{{1,3}}(?: \d{{3}}){{2,}}(?! ?\d)(?:\.\d+)?"
)
_COMMAS = re.compile(r"[1-9]\d{0,2}(?:,\d{3})+(?![\d])(?!,\d)(?:\.\d+)?")
_NUMBER = re.compile(r"(\d+\.(?=\s*[/*+)])|\d+(?:\.\d+)?|\.\d+)(?:[eE]([+-]?\d{1,4})(?![\w.^{\\]))?")

_PROGRAM_NUMBER = re.compile(r"0(?:[xX][0-9A-Fa-f]+|[bB][01]+|[oO][0-7]+)(?!\w)")

_ALIASES = {
    "dfrac": "frac",
    "tfrac": "frac",
    "cfrac": "frac",
    "leq": "le",
    "leqslant": "le",
    "leqq": "le",
    "geq": "ge",
    "geqslant": "ge",
    "geqq": "ge",
    "lt": "<",
    "gt": ">",
    "neq": "ne",
    "ast": "*",
    "vert": "|",
    "lvert": "lvert",
    "lbrace": "{",
    "rbrace": "}",
    "lbrack": "[",
    "rbrack": "]",
    "lparen": "(",
    "rparen": ")",
    "degree": "degree",
    "varnothing": "emptyset",
    "bigcup": "cup",
    "bigcap": "cap",
    "backslash": "setminus",
    "dbinom": "binom",
    "tbinom": "binom",
    "arccot": "acot",
    "arcsec": "asec",
    "arccsc": "acsc",
    "arcsin": "asin",
    "arccos": "acos",
    "arctan": "atan",
    "arcsinh": "asinh",
    "arccosh": "acosh",
    "arctanh": "atanh",
    "tg": "tan",
    "ctg": "cot",
    "colon": ":",
    "overbar": "overline",
    "simeq": "approx",
    "lor": "or",
    "vee": "or",
    "infinity": "infty",
    "dots": "ldots",
    "cdots": "ldots",
    "tan": "tan",
    "binomial": "binom",
    "comb": "binom",
    "oo": "infty",
    "inf": "infty",
    "power": "pow",
    "log10": "lg",
}
_NAMES = frozenset([*FUNCTIONS, *INTEGER_FUNCTIONS, "log", "lg", "sqrt", "cbrt", "pi", "infty", *_GREEK, "pow"])
_NO_NAMES = frozenset(["arg", "re", "im", "conj", "nu", "mu", "xi", "eta", "chi", "tau", "psi", "phi", "rho"])
"""As plain letters these are products."""
_LETTERS = frozenset(["ad", "bc", "am", "pm"])
"""Words that are products of letters where no ``\\\\text{}`` says otherwise."""
_SYMBOLS_OF_COMMANDS = {"{", "}", "<", ">", "*", "|", "[", "]", "(", ")", ":", "%", "$", "#", "&", "_"}


def tokens(text: str, commas: bool = True) -> list[Token]:
    """``text`` as tokens, all of it; what has no meaning becomes tokens that no rule of the grammar takes.

    Args:
        text: an answer without the delimiters around it.
        commas: whether ``1,234`` outside of brackets is one number; else it is two.
    """
    return _Reader(_latex(text), commas).read()


def _latex(text: str) -> str:
    """``text`` with its Unicode mathematics as LaTeX, without sizes of brackets and styles of letters."""
    if "\\begin" not in text:
        text = _DOUBLED.sub(r"\\", text)
    text = _SUPERSCRIPTS.sub(lambda match: "^{" + "".join(_SUPERSCRIPT[c] for c in match[0]) + "}", text)
    text = _SUBSCRIPTS.sub(lambda match: "_{" + "".join(_SUBSCRIPT[c] for c in match[0]) + "}", text)
    text = "".join(_fraction(c) if unicodedata.category(c) == "No" else c for c in text)
    text = _OVERLINED.sub(lambda match: "\\overline{" + "".join(c for c in match[0] if c.isdigit()) + "}", text)
    text = _DOTTED.sub(lambda match: f"\\dot{{{match[0][0]}}}", text).translate(_TRANSLATION)
    text = unicodedata.normalize("NFKC", text).translate(_TRANSLATION)
    text = _SETS.sub(lambda match: f"\\{match[1] or match[2]} ", text)
    text = _STYLED.sub(r"\1 ", text)
    text = _STYLES.sub("", _SIZES.sub("", _PHANTOM.sub("", text)))
    text = _INFIX.sub(_prefixed, text)
    text = _PRIME.sub(lambda match: "'" * max(1, (match[1] or "").count("prime")), text)
    text = _PROGRAM_BASE.sub(r"\\log_{\1}", _PROGRAM_LOG.sub(r"\\ln ", text))
    return _PROGRAM.sub("", _TIMES.sub(r"\\times ", text))


def _prefixed(match: re.Match[str]) -> str:
    """TeX's ``{a \\over b}`` as ``\\frac{a}{b}`` and ``{n \\choose k}`` as ``\\binom{n}{k}``, or a whole text so."""
    opening, first, name, second, closing = match.groups()
    if bool(opening) != bool(closing):
        return match[0]
    return rf"{opening}\{'frac' if name == 'over' else 'binom'}{{{first}}}{{{second}}}{closing}"


def _fraction(character: str) -> str:
    parts = unicodedata.normalize("NFKC", character).split("⁄")
    return f"\\frac{{{parts[0]}}}{{{parts[1]}}}" if len(parts) == 2 else character


class _Reader:
    def __init__(self, text: str, commas: bool) -> None:
        self.text, self.commas, self.at, self.depth = text, commas, 0, 0
        self.found: list[Token] = []
        self.spaced = False

    def read(self) -> list[Token]:
        while self.at < len(self.text):
            if match := _SPACE.match(self.text, self.at):
                self.at, self.spaced = match.end(), True
                continue
            self._one()
        return self.found

    def _one(self) -> None:
        character = self.text[self.at]
        if character.isdigit() or character == ".":
            if self._number():
                return
        if character == "\\":
            return self._backslash()
        if match := _WORD.match(self.text, self.at):
            self.at = match.end()
            return self._word(match[0])
        match = _SYMBOL.match(self.text, self.at)
        self.at = match.end() if match else self.at + 1
        self._symbol(match[0] if match else character)

    def _add(self, kind: str, text: str, value: Fraction | None = None, grouped: bool = False) -> None:
        self.found.append(Token(kind, text, self.spaced, value, grouped))
        self.spaced = False

    def _symbol(self, text: str) -> None:
        text = {"**": "^", "<=": "le", ">=": "ge", "!=": "ne", "==": "=", "...": "ldots"}.get(text, text)
        self.depth += (text in "([") - (text in ")]") if len(text) == 1 else 0
        if text in ("le", "ge", "ne", "ldots"):
            self._add("command", text)
        elif text != "$":
            self._add("symbol", text)

    def _number(self) -> bool:
        if match := _PROGRAM_NUMBER.match(self.text, self.at):
            self.at = match.end()
            self._add("number", match[0], value=Fraction(int(match[0], 0)))
            return True
        if match := _REPEATING.match(self.text, self.at):
            self.at = match.end()
            self._add("number", match[0], value=_repeating(match))
            return True
        grouped = False
        match = _THOUSANDS.match(self.text, self.at)
        if match is None and self.commas and self.depth <= 0:
            match = _COMMAS.match(self.text, self.at)
            grouped = match is not None
        if match:
            self.at = match.end()
            digits = re.sub(r"[^\d.]", "", match[0])
            self._add("number", digits, value=Fraction(digits), grouped=grouped)
            return True
        match = _NUMBER.match(self.text, self.at)
        if match is None:
            return False
        self.at = match.end()
        digits = match[1].rstrip(".")
        value = Fraction(digits if digits[0] != "." else "0" + digits)
        exponent = int(match[2] or 0)
        self._add("number", f"{digits}e{exponent}" if match[2] else digits, value=value * Fraction(10) ** exponent)
        return True

    def _backslash(self) -> None:
        if match := _TEXT.match(self.text, self.at):
            self.at = match.end()
            return self._quoted(match[1])
        if match := _UPRIGHT.match(self.text, self.at):
            self.at = match.end()
            return self._upright(_SPACE.sub(" ", match[1]).strip())
        match = _COMMAND.match(self.text, self.at)
        name = match[0][1:] if match else "\\"
        self.at = match.end() if match else self.at + 1
        name = _ALIASES.get(name, name)
        if name in ("or", "and"):
            self._add("text", name)
        elif name == "$":
            pass
        elif name in ("{", "}", "langle", "rangle", "lvert", "rvert"):
            self.depth += {"{": 1, "langle": 1, "}": -1, "rangle": -1}.get(name, 0)
            self._add("command", name)
        elif name in _SYMBOLS_OF_COMMANDS:
            self._symbol(name)
        else:
            self._add("command", name)

    def _quoted(self, content: str) -> None:
        """``\\text{}``: mathematics if it holds capitals, digits and signs only, else words."""
        content = " ".join(_SPACE.sub(" ", content).split())
        after_number = bool(self.found) and self.found[-1].kind == "number"
        if not content:
            self.spaced = True
        elif after_number and is_listed(content):
            self._add("text", content)
        elif not re.search(r"[A-Za-z]{2}|[a-df-hj-z]", content):
            self.found += [
                Token(t.kind, t.text, t.spaced or (self.spaced and i == 0), t.value, t.grouped)
                for i, t in enumerate(_Reader(content, False).read())
            ]
            self.spaced = True  # as behind the letter of an option
        else:
            match = _CONJUNCTION.fullmatch(content)
            for piece in match.groups() if match else (content,):
                if piece:
                    self._add("symbol" if piece in ",;" else "text", piece.lower() if match else piece)

    def _upright(self, content: str) -> None:
        name = _ALIASES.get(content, content)
        if name in _NAMES:
            self._add("command", name)
        elif content in ("e", "i"):
            self._add("letter", content)
        elif is_listed(content) or len(content) > 2 and content.isalpha():
            self._add("text", content)
        else:
            self.found += _Reader(content, False).read()
            self.spaced = False

    def _word(self, word: str) -> None:
        name = _ALIASES.get(word, word)
        after_number = bool(self.found) and self.found[-1].kind in ("number", "command", "symbol", "letter")
        if name in _NAMES and word not in _NO_NAMES and not (len(word) == 1):
            self._add("command", name)
        elif len(word) == 1:
            self._add("letter", word)
        elif word in ("OR", "AND"):
            self._add("text", word.lower())
        elif word in MEANING - _LETTERS or word.islower() and len(word) > 3 or word.istitle() and len(word) > 2:
            self._add("text", word)
        elif self.found and is_listed(word) and after_number and (self.found[-1].kind == "number" or self.spaced):
            self._add("text", word)
        else:
            for letter in word:
                self._add("letter", letter)


def _repeating(match: re.Match[str]) -> Fraction:
    """The value of ``0.1\\overline{6}``, ``0.1(6)`` or ``0.1\\dot{6}``."""
    whole, fixed = match[1] or "0", match[2]
    period = match[3] or match[4] or match[5] or match[6] + (match[7] or "") + (match[8] or "")
    if match[6] and match[8] is None and match[7]:
        raise ValueError("one dot")
    value = Fraction(int(whole + fixed), 10 ** len(fixed))
    return value + Fraction(int(period), (10 ** len(period) - 1) * 10 ** len(fixed))
