"""What this project uses of verl, read from the project's own sources."""

from __future__ import annotations

import ast
import importlib
import inspect
import textwrap
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parents[2]
PACKAGES = ("recipe", "verl_ext")


def sources() -> dict[str, ast.Module]:
    """Module name -> syntax tree, for every file of the packages."""
    trees = {}
    for package in PACKAGES:
        for file in sorted((PROJECT / package).rglob("*.py")):
            parts = file.relative_to(PROJECT).with_suffix("").parts
            trees[".".join(parts).removesuffix(".__init__")] = ast.parse(file.read_text())
    return trees


def used_symbols() -> set[str]:
    """Dotted names of everything imported from verl and of every attribute taken of it, wherever in a file."""
    symbols = set()
    for tree in sources().values():
        names = dict(_imported_from_verl(tree))
        symbols.update(names.values())
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in names:
                symbols.add(f"{names[node.value.id]}.{node.attr}")
    return symbols


def _imported_from_verl(tree: ast.Module) -> Iterator[tuple[str, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and _is_verl(node.module or ""):
            yield from ((alias.asname or alias.name, f"{node.module}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if _is_verl(alias.name):
                    yield alias.asname or alias.name.partition(".")[0], alias.name if alias.asname else "verl"


def _is_verl(module: str) -> bool:
    return module.partition(".")[0] == "verl"


def resolve(symbol: str) -> Any:
    """The object with this dotted name.

    Raises:
        ImportError, AttributeError: there is none.
    """
    parts = symbol.split(".")
    for length in range(len(parts), 0, -1):
        try:
            value = importlib.import_module(".".join(parts[:length]))
        except ModuleNotFoundError as error:
            if not symbol.startswith(error.name):
                raise  # the module is there and lacks a dependency
            continue
        for attribute in parts[length:]:
            value = getattr(value, attribute)
        return value
    raise ImportError(symbol)


def own_classes() -> list[type]:
    """Classes of this project that derive from a class of verl, or are to be put in front of one."""
    found = []
    for name, tree in sources().items():
        if not dict(_imported_from_verl(tree)):
            continue
        for node in tree.body:
            if isinstance(node, ast.ClassDef):
                cls = getattr(importlib.import_module(name), node.name)
                cls = getattr(getattr(cls, "__ray_metadata__", None), "modified_class", cls)
                is_mixin = attributes_of(node, "super()") and all(map(is_own, cls.__mro__[:-1]))
                if is_mixin or derives_from_verl(cls):
                    found.append(cls)
    return found


def derives_from_verl(cls: type) -> bool:
    return any(_is_verl(base.__module__) for base in cls.__mro__)


def is_own(cls: type) -> bool:
    return cls.__module__.partition(".")[0] in PACKAGES


def trees_of(cls: type) -> dict[type, ast.Module]:
    """Syntax tree of each class in the method resolution order that is written in Python."""
    trees = {}
    for base in cls.__mro__:
        with suppress(OSError, TypeError):  # made by type(), or a built-in
            trees[base] = ast.parse(textwrap.dedent(inspect.getsource(base)))
    return trees


def attributes_of(tree: ast.AST, owner: str, context: type = ast.Load) -> set[str]:
    """Every ``x`` in ``owner.x``, read or (``context=ast.Store``) assigned."""
    return {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, context) and ast.unparse(node.value) == owner
    }


def signature_problem(own: Any, upstream: Any) -> str | None:
    """Why a call that suits ``upstream`` may not suit ``own``; None if it does.

    A constructor's keyword-only parameters don't count: whoever hands the class to verl binds them.
    """
    bound = (inspect.Parameter.KEYWORD_ONLY,) if own.__name__ == "__init__" else ()
    own, upstream = (inspect.signature(function).parameters for function in (own, upstream))
    kinds = {parameter.kind for parameter in own.values()}
    takes_any_keyword, takes_any_position = (
        inspect.Parameter.VAR_KEYWORD in kinds,
        inspect.Parameter.VAR_POSITIONAL in kinds,
    )
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    for position, parameter in enumerate(upstream.values()):
        if parameter.kind in variadic or parameter.name == "_ray_trace_ctx":  # Ray's, in the methods of actors
            continue
        if parameter.name not in own and not takes_any_keyword:
            return f"verl passes {parameter.name}"
        if parameter.name not in own and not takes_any_position and parameter.kind is not parameter.KEYWORD_ONLY:
            return f"verl may pass {parameter.name} by position"
        if parameter.name in own and parameter.kind is not parameter.KEYWORD_ONLY:
            if list(own).index(parameter.name) != position:
                return f"{parameter.name} is not at verl's position"
    for name, parameter in own.items():
        if name not in upstream and parameter.default is parameter.empty and parameter.kind not in (*variadic, *bound):
            return f"verl doesn't pass {name}"
    return None
