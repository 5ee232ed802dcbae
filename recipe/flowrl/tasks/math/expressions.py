"""The grammar of scalar expressions: tokens to a node of :mod:`.scalars`. :mod:`.grammar` builds answers on it."""

from fractions import Fraction

from recipe.flowrl.tasks.math.notation import Token
from recipe.flowrl.tasks.math.rational import INTEGER_FUNCTIONS, Node, number
from recipe.flowrl.tasks.math.scalars import FUNCTIONS

_DEPTH = 60
_UNKNOWN_FUNCTIONS = frozenset("fghFG")
_PREFIX = frozenset(FUNCTIONS.keys() | INTEGER_FUNCTIONS.keys() | {"log", "lg"}) - {"factorial", "logb", "binom"}
_CONSTANTS = {"pi": ("const", "pi"), "e": ("const", "e"), "i": ("const", "i")}
_LETTER_COMMANDS = frozenset(
    "alpha beta gamma delta epsilon varepsilon zeta eta theta vartheta iota kappa lambda mu nu xi omicron rho varrho "
    "sigma tau upsilon phi varphi chi psi omega Gamma Delta Theta Lambda Xi Pi Sigma Upsilon Phi Psi Omega ell hbar "
    "aleph Alpha Beta Epsilon".split()
)
_DECORATIONS = frozenset("vec hat bar overline overrightarrow tilde dot ddot mathcal mathscr mathfrak widehat".split())


class NotUnderstood(Exception):
    """The text isn't, or not wholly, an answer that the grammar knows."""


class ExpressionParser:
    """Recursive descent; each method takes the tokens that it understands from where the parser stands."""

    def __init__(self, tokens: list[Token]) -> None:
        self.tokens, self.at, self.depth, self.signs, self.bars = tokens, 0, 0, 0, 0
        self.scale: str | None = None  # of degrees, behind the value
        self.reversed = False  # within ]a, b[

    # tokens

    def peek(self, offset: int = 0) -> Token:
        index = self.at + offset
        return self.tokens[index] if index < len(self.tokens) else Token("end", "")

    def is_(self, *texts: str, offset: int = 0) -> bool:
        token = self.peek(offset)
        return token.kind in ("symbol", "command") and token.text in texts

    def take(self, *texts: str) -> bool:
        found = self.is_(*texts)
        self.at += found
        return found

    def need(self, *texts: str) -> str:
        if not self.take(*texts):
            raise NotUnderstood(f"{' or '.join(texts)} expected, {self.peek().text!r} found")
        return self.tokens[self.at - 1].text

    def end(self) -> None:
        if self.at < len(self.tokens):
            raise NotUnderstood(f"{self.peek().text!r} left over")

    # scalars

    def sum(self) -> Node:
        self._deeper()
        parts, sign = [], self._sign()
        parts.append(self._signed(sign))
        while self.is_("+", "-", "pm", "mp"):
            parts.append(self._signed(self._sign()))
        self.depth -= 1
        return parts[0] if len(parts) == 1 else ("add", *parts)

    def _deeper(self) -> None:
        self.depth += 1
        if self.depth > _DEPTH:
            raise NotUnderstood("too deep")

    def _sign(self) -> Node | None:
        if self.take("-"):
            return number(-1)
        if self.is_("pm", "mp"):
            sign = 1 if self.peek().text == "pm" else -1
            self.at += 1
            self.signs += 1
            return ("pm", self.signs, sign)
        self.take("+")
        return None

    def _signed(self, sign: Node | None) -> Node:
        term = self.term()
        return term if sign is None else ("mul", sign, term)

    def term(self) -> Node:
        node = self.factor()
        while True:
            if self.take("times", "cdot", "*"):
                node = ("mul", node, self._after_operator())
            elif self.take("/", "div"):
                node = ("div", node, self._after_operator())
                if self._starts_factor() and not self.peek().spaced:
                    raise NotUnderstood("what is divided by isn't clear")
            elif self._starts_factor():
                node = ("mul", node, self.factor(juxtaposed=True))
            else:
                return node

    def _after_operator(self) -> Node:
        if self.take("-"):
            return ("mul", number(-1), self.factor())
        return self.factor()

    def _starts_factor(self) -> bool:
        token = self.peek()
        if token.kind == "number":  # "4 2" are two values, "9! 8!" and "\\pi 2^n" products
            before = self.tokens[self.at - 1]
            return before.kind not in ("number", "letter") and (token.spaced or before.text == ")")
        if token.kind == "letter":
            return True
        if token.kind == "symbol":
            opens = "({" if self.reversed else "([{"
            return token.text in opens or token.text == "|" and self.bars == 0
        commands = (
            "frac",
            "sqrt",
            "binom",
            "lfloor",
            "lceil",
            "lvert",
            "infty",
            "pi",
            "circ",
            "degree",
            "angle",
            "triangle",
        )
        names = _PREFIX | _LETTER_COMMANDS | _DECORATIONS
        return token.kind == "command" and (token.text in commands or token.text in names)

    def factor(self, juxtaposed: bool = False) -> Node:
        node = self._postfix(self._base_node())
        if self.take("^"):
            node = self._raised(node)
            node = self._postfix(node)
        return node

    def _raised(self, node: Node) -> Node:
        if self.is_("{") and self.is_("circ", "degree", offset=1) and self.is_("}", offset=2):
            self.at += 3
        elif not self.take("circ", "degree"):
            return ("pow", node, self._exponent())
        return self._degrees(node)

    def _degrees(self, node: Node) -> Node:
        if self.peek().kind == "letter" and self.peek().text in ("C", "F") and self.peek(1).kind == "end":
            self.scale = f"°{self.peek().text}"
            self.at += 1
            return node
        return ("mul", node, ("degree",))

    def _exponent(self) -> Node:
        sign = self._sign()
        node = self._group() if self.is_("{") else self._base_node()
        if self.take("^"):
            node = ("pow", node, self._exponent())
        return node if sign is None else ("mul", sign, node)

    def _postfix(self, node: Node) -> Node:
        while True:
            if self.take("!"):
                if node[0] == "fn" and "factorial" in node[1] and not self.is_parenthesis_before():
                    raise NotUnderstood("!")
                name = "doublefactorial" if self.take("!") else "factorial"
                if self.is_("!"):
                    raise NotUnderstood("!!!")
                node = ("fn", name, node)
            elif self.take("%"):
                node = ("mul", node, ("percent",))
            elif self.take("degree"):
                node = self._degrees(node)
            else:
                return node

    def is_parenthesis_before(self) -> bool:
        return self.at >= 2 and self.tokens[self.at - 2].text == ")"

    def _group(self) -> Node:
        self.need("{")
        node = self.sum()
        self.need("}")
        return node

    def _argument(self) -> Node:
        """What a command such as ``\\frac`` takes: a group, one digit, or one letter or command."""
        if self.is_("{") and self.peek().kind == "symbol":
            return self._group()
        token = self.peek()
        if token.kind == "number":
            self.at += 1
            return ("num", token.value)
        return self._base_node()

    def _base_node(self) -> Node:
        self._deeper()
        try:
            return self._atom()
        finally:
            self.depth -= 1

    def _atom(self) -> Node:
        token = self.peek()
        if token.kind == "number":
            return self._numeral()
        if token.kind == "letter":
            return self._letter()
        if token.kind == "symbol":
            if token.text == "{":
                return self._group()
            if token.text in "([":
                return self._parenthesis()
            if self.take("|"):
                return self._absolute("|")
        if token.kind == "command":
            return self._command()
        raise NotUnderstood(f"{token.text!r} is no value")

    def _numeral(self) -> Node:
        token, value = self.peek(), self.peek().value
        assert value is not None  # every number has one
        self.at += 1
        if self.is_("_"):
            raise NotUnderstood("a base within an expression")
        whole = value.denominator == 1 and "." not in token.text
        if whole and self.is_("frac"):
            return self._mixed(value)
        if whole and self.peek().kind == "number" and self.is_("/", offset=1) and self.peek(2).kind == "number":
            spaced, first, second = self.peek().spaced, self.peek().value, self.peek(2).value
            if spaced and first and second and 0 < first < second and first.denominator == second.denominator == 1:
                self.at += 3
                return number(value + first / second)
        return ("num", value)

    def _mixed(self, whole: Fraction) -> Node:
        """``1\\frac{1}{4}``; with a fraction that isn't proper it isn't clear, with letters it is a product."""
        start = self.at
        self.need("frac")
        top, bottom = self._fraction_parts()
        if top[0] == bottom[0] == "num":
            if not 0 < top[1] < bottom[1]:
                raise NotUnderstood("a mixed number or a product")
            return number(whole + top[1] / bottom[1])
        self.at = start
        return ("num", whole)

    def _fraction_parts(self) -> tuple[Node, Node]:
        token = self.peek()
        if token.kind == "number" and not self.is_("{", offset=1) and token.text.isdigit() and len(token.text) == 2:
            if self.peek(1).kind != "number":
                self.at += 1
                return number(int(token.text[0])), number(int(token.text[1]))
        if token.kind == "number" and len(token.text) > 1:
            raise NotUnderstood("\\frac and several digits")
        top = self._argument()
        if self.peek().kind == "number" and len(self.peek().text) > 1:
            raise NotUnderstood("\\frac and several digits")
        return top, self._argument()

    def _name(self, name: str) -> str:
        """``name`` with its subscript and primes."""
        if self.take("_"):
            if self.take("{"):
                depth, contents = 1, []
                while True:
                    token = self.peek()
                    if token.kind == "end":
                        raise NotUnderstood("a subscript")
                    depth += (token.text == "{") - (token.text == "}") if token.kind == "symbol" else 0
                    self.at += 1
                    if depth == 0:
                        break
                    contents.append(token.identity)
                content = " ".join(contents)
            else:
                content = self.peek().identity
                self.at += 1
            name += f"_{content}"
        while self.take("'"):
            name += "'"
        return name

    def _letter(self) -> Node:
        letter = self.peek().text
        self.at += 1
        if letter in ("e", "i") and not self.is_("_"):
            return _CONSTANTS[letter]
        name = self._name(letter)
        if letter in _UNKNOWN_FUNCTIONS and self.is_("("):
            return ("unknown", name, *self._arguments())
        return ("var", name)

    def _arguments(self) -> list[Node]:
        self.need("(")
        found = [self.sum()]
        while self.take(","):
            found.append(self.sum())
        self.need(")")
        return found

    def _parenthesis(self) -> Node:
        left = self.need("(", "[")
        bars, self.bars = self.bars, 0
        node = self.sum()
        self.bars = bars
        self.need({"(": ")", "[": "]"}[left])
        return node

    def _absolute(self, closing: str) -> Node:
        self.bars += 1
        node = self.sum()
        self.bars -= 1
        self.need(closing)
        return ("fn", "abs", node)

    def _command(self) -> Node:
        name = self.peek().text
        self.at += 1
        if name == "frac":
            return ("div", *self._fraction_parts())
        if name == "binom":
            found = self._arguments() if self.is_("(") else [self._argument(), self._argument()]
            return ("fn", "binom", *found)
        if name in ("sqrt", "cbrt"):
            return self._root(name)
        if name in ("lfloor", "lceil"):
            node = self.sum()
            self.need("rfloor" if name == "lfloor" else "rceil")
            return ("fn", "floor" if name == "lfloor" else "ceil", node)
        if name == "lvert":
            node = self.sum()
            self.need("rvert")
            return ("fn", "abs", node)
        if name == "infty":
            return ("inf",)
        if name == "pi":
            return ("var", self._name("pi")) if self.is_("_") else ("const", "pi")
        if name == "pow":
            return ("pow", *self._arguments())
        if name in ("angle", "triangle"):
            while self.peek().kind == "letter":
                name += self.peek().text
                self.at += 1
            return ("var", name)
        if name in _PREFIX:
            return self._function(name)
        if name in _LETTER_COMMANDS:
            return ("var", self._name(name))
        if name in _DECORATIONS:
            return ("var", self._name(f"{name}({self._argument()!r})"))
        raise NotUnderstood(f"\\{name}")

    def _root(self, name: str) -> Node:
        degree: Node = number(3 if name == "cbrt" else 2)
        if name == "sqrt" and self.is_("["):
            degree = self._parenthesis()
        node = self._group() if self.is_("{") else self._base_node()
        return ("root", degree, node)

    def _function(self, name: str) -> Node:
        base = None
        if name in ("log", "lg") and self.take("_"):
            base = self._argument()
        power = self._exponent() if self.take("^") else None
        if power is not None and power in (number(-1), ("mul", number(-1), number(1))):
            inverse = f"a{name}"
            if inverse not in _PREFIX:
                raise NotUnderstood("an inverse")
            name, power = inverse, None
        arguments = self._function_arguments()
        if base is not None:
            node: Node = ("fn", "logb", base, *arguments)
        else:
            node = ("fn", name, *arguments)
        several = name in ("max", "min", "gcd", "lcm")
        if len(arguments) != 1 and not several:
            raise NotUnderstood("arguments")
        return node if power is None else ("pow", node, power)

    def _function_arguments(self) -> list[Node]:
        if self.is_("("):
            return self._arguments()
        if self.is_("{") and self.peek().kind == "symbol":
            return [self._group()]
        sign = self.take("-")
        node = self.factor()
        while self._starts_factor() and self.peek().text not in _PREFIX and not self.is_("(", "[", "|"):
            node = ("mul", node, self.factor())
        return [("mul", number(-1), node) if sign else node]
