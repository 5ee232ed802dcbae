"""What a rehearsal changed, as lines of text."""

from collections.abc import Iterable
from typing import Any

from recipe.flowrl.rehearsal.transform import Change

_ENVIRONMENT = "ray_kwargs.ray_init.runtime_env.env_vars."
_WIDEST = 44
"""Characters of a value that are shown."""


def difference_lines(changes: Iterable[Change]) -> list[str]:
    """A table of options; environment variables, of which there are many, in one line."""
    changes = list(changes)
    rows = [("option", "the run", "the rehearsal")]
    rows += [(c.option, _brief(c.run), _brief(c.rehearsal)) for c in changes if not c.option.startswith(_ENVIRONMENT)]
    first, second = (max(len(row[column]) for row in rows) for column in (0, 1))
    lines = [f"  {option:<{first}}  {run:<{second}}  {rehearsal}" for option, run, rehearsal in rows]
    variables = [c.option.removeprefix(_ENVIRONMENT) for c in changes if c.option.startswith(_ENVIRONMENT)]
    return lines + ([f"  and the environment variables {', '.join(variables)}"] if variables else [])


def _brief(value: Any) -> str:
    text = "-" if value is None or value == {} else str(value)
    return text if len(text) <= _WIDEST else f"...{text[3 - _WIDEST :]}"
