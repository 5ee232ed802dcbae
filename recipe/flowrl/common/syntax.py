"""Python's own parser, for rewards, which are computed in several threads."""

import ast
import threading
from typing import Literal

_PARSER = threading.Lock()


def parse_python(source: str, mode: Literal["exec", "eval"] = "exec") -> ast.AST:
    """``ast.parse``, one call at a time.

    Before 3.11.8 and 3.12.2 CPython counts the depth of all trees under construction in one place, so that a garbage
    collection during one of two calls, which lets the other thread go on, ends in a SystemError (CPython issue 106905).
    """
    with _PARSER:
        return ast.parse(source, mode=mode)
