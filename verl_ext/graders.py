"""verl's reward functions that run what a model wrote can't be imported where this module was.

verl chooses a reward function by a row's ``data_source`` and imports it at the first response. Three of them hand the
response to ``eval`` or run it as a program, with all rights of the run (verl 0.9.1; CVE-2026-6878 for the first).
``VERL_USE_EXTERNAL_MODULES=verl_ext.graders`` makes verl import this module in each of its processes, before any of
its own reward functions. Standard library only.
"""

import importlib.abc
import importlib.machinery
import sys
import types
from collections.abc import Sequence
from typing import NoReturn

MODULE = "verl_ext.graders"
"""What ``VERL_USE_EXTERNAL_MODULES`` has to name."""

PACKAGE = "verl.utils.reward_score"
SHUT = {
    "prime_math": "calls eval on the model's text (CVE-2026-6878)",
    "prime_code": "runs the model's programs without a sandbox",
    "geo3k": "hands the model's text to mathruler, whose sympy parser calls eval on it",
}
"""Module of :data:`PACKAGE` -> why it is shut."""


class _Shut(importlib.abc.MetaPathFinder):
    """Refuses the modules of :data:`SHUT` and what is below them."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: types.ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        package, _, name = fullname.partition(f"{PACKAGE}.")
        reason = SHUT.get(name.partition(".")[0]) if not package else None
        if reason:
            raise ImportError(
                f"{fullname} is shut: it {reason}. Score with reward=math_verify, reward=math_dapo or reward=code, or "
                "with a function of your own (reward.custom_reward_function.path)",
                name=fullname,
            )
        return None


def shut() -> None:
    """Shut the modules in this process, also those that were imported before; to call it again changes nothing."""
    if not any(isinstance(finder, _Shut) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Shut())
    for name in SHUT:
        for loaded in [key for key in sys.modules if f"{key}.".startswith(f"{PACKAGE}.{name}.")]:
            del sys.modules[loaded]
        vars(sys.modules.get(PACKAGE, types.ModuleType(""))).pop(name, None)


def verls_choice(data_source: str, sandbox_url: str | None) -> str | None:
    """The module of :data:`PACKAGE` that ``default_compute_score`` would score with; None if it has none.

    verl's own function is asked, up to its first import, which is noted instead of done.
    """
    from verl.utils.reward_score import default_compute_score

    class Chosen(BaseException):
        """The function has made its choice."""

    def note(
        name: str, globals: object = None, locals: object = None, fromlist: Sequence[str] = (), level: int = 0
    ) -> NoReturn:
        raise Chosen(*fromlist)

    builtins = {**vars(__import__("builtins")), "__import__": note}
    asked = types.FunctionType(
        default_compute_score.__code__, {"__builtins__": builtins}, argdefs=default_compute_score.__defaults__
    )
    try:
        asked(data_source, "", "", sandbox_fusion_url=sandbox_url)
    except Chosen as choice:
        return choice.args[0]
    except NotImplementedError:
        return None
    raise LookupError("verl's default_compute_score doesn't import what it scores with: it isn't the one known here")


shut()
