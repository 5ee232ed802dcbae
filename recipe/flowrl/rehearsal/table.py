"""What a rehearsal changed, as lines of text."""

import textwrap
from collections.abc import Iterable
from typing import Any

from recipe.flowrl.rehearsal.transform import Change, Settings

_ENVIRONMENT = "ray_kwargs.ray_init.runtime_env.env_vars."
_WIDEST = 40
"""Characters of a value that are shown."""


def difference_lines(changes: Iterable[Change], settings: Settings) -> list[str]:
    """A table of the options that the rehearsal set; of those that follow them, and of the environment, the names.

    Args:
        changes: all that differs.
        settings: what the rehearsal set.
    """
    left = {change.option: change for change in changes}
    rows = [("", "the run", "the rehearsal")]
    for title, group in settings.items():
        shown = [left.pop(option) for option in group if option in left and not option.startswith(_ENVIRONMENT)]
        rows += [(f"{title}:", "", "")] if shown else []
        rows += [(f"  {change.option}", _brief(change.run), _brief(change.rehearsal)) for change in shown]
    first, second = (max(len(row[column]) for row in rows) for column in (0, 1))
    lines = [f"{option:<{first}}  {run:<{second}}  {rehearsal}".rstrip() for option, run, rehearsal in rows]
    variables = [option for option in left if option.startswith(_ENVIRONMENT)]
    followers = [option for option in left if option not in variables]
    names = [option.removeprefix(_ENVIRONMENT) for option in variables]
    return [*lines, *_names("options that follow these", followers), *_names("environment variables", names)]


def _names(title: str, names: list[str]) -> list[str]:
    text = f"{title}: {', '.join(names)}"
    return textwrap.wrap(text, 118, subsequent_indent="  ") if names else []


def _brief(value: Any) -> str:
    text = "-" if value is None or value == {} else str(value)
    return text if len(text) <= _WIDEST else f"...{text[3 - _WIDEST :]}"
