"""Tables that tests make stand in documents between two marks."""

from collections.abc import Iterable


def between(text: str, begin: str, lines: Iterable[str], end: str) -> str:
    """``text`` with ``lines`` in place of what is between ``begin`` and ``end``."""
    before, _, rest = text.partition(begin)
    _, _, after = rest.partition(end)
    return "\n".join([before + begin, *lines, end + after])
