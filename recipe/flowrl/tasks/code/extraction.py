"""Which part of a response is the program.

The fenced code blocks of a response are found as in CommonMark: three or more backticks or tildes, alone on a line but
for what the block is called; closed by at least as many of the same kind, alone on a line that is indented by less than
four columns more. A block may stand under a list item or in a quotation, also on the item's own line; the indentation
of its first line is taken from the others. Where responses aren't Markdown:

- an opening line with a name, inside a block that it could have closed without one, begins another block: the first was
  never closed;
- ``</think>`` ends what is open;
- what is never closed is no block, and neither is one without content;
- the closing line may be followed by a tag, such as ``</answer>``.

The program is the last block that is called Python, or nothing; where there is none, the last block of any name. If all
its lines are indented, they are shifted to the left. The time taken grows linearly with the response, of which the last
10,000 fences are looked at.
"""

import re
import textwrap
from collections.abc import Iterator
from typing import NamedTuple

LONGEST_PROGRAM = 200_000
"""Characters."""

_LONGEST_FENCE = 16
_MOST_FENCES = 10_000
_THOUGHT = "</think>"
_FENCE = re.compile(
    r"(?P<quotes>(?:[ ]{0,3}>)*)(?P<indent>[ \t]*(?:(?:[-*+]|\d{1,9}[.)])[ \t]+)*)"
    rf"(?P<fence>`{{3,{_LONGEST_FENCE}}}(?!`)|~{{3,{_LONGEST_FENCE}}}(?!~))(?P<info>.*)"
)
_QUOTE = re.compile(r"[ ]{0,3}>[ ]?")
_PYTHON = re.compile(r"[{.\s]*(?:(?:python|pypy|py)[\d.]*(?![\w-])|$)", re.IGNORECASE)


class _Fence(NamedTuple):
    line: int
    kind: str
    length: int
    columns: int
    """Width of what stands before it, without the marks of a quotation."""
    quotes: int
    item: bool
    """Whether a list item begins on its line."""
    info: str

    @property
    def closes(self) -> bool:
        """Whether it can be the last line of a block; the first it can be as well, unless a tag follows."""
        return not self.item and (not self.info or self.tag)

    @property
    def tag(self) -> bool:
        return self.info.startswith("<")

    def fits(self, opening: "_Fence") -> bool:
        """Whether it would close the block if it stood there alone."""
        same = (self.kind, self.quotes) == (opening.kind, opening.quotes)
        return same and self.length >= opening.length and self.columns < opening.columns + 4


def last_program(text: str) -> str | None:
    """The program in a response, as the module says; None if there is none or it is absurdly long."""
    lines = [line.removesuffix("\r") for line in text.replace(_THOUGHT, f"\n{_THOUGHT}\n").split("\n")]
    chosen = None
    for opening, closing in _blocks(lines):
        python = _PYTHON.match(opening.info) is not None
        better = python or chosen is None or not chosen[0]
        if better and any(map(str.strip, lines[opening.line + 1 : closing.line])):
            chosen = (python, opening, closing)
    if chosen is None:
        return None
    _, opening, closing = chosen
    content = [_unindented(line, opening) + "\n" for line in lines[opening.line + 1 : closing.line]]
    program = "".join(content)
    if len(program) > LONGEST_PROGRAM:
        return None
    first = next(line for line in content if line.strip())
    return textwrap.dedent(program) if first[0].isspace() else program


def _blocks(lines: list[str]) -> Iterator[tuple[_Fence, _Fence]]:
    """The opening and the closing of each block, in their order."""
    opening = None
    for fence, closed in _fences(lines):
        if fence is None:
            opening = None
        elif opening is not None and fence.closes and fence.fits(opening):
            yield opening, fence
            opening = None
        elif closed and (opening is None or fence.fits(opening)):
            opening = fence


def _fences(lines: list[str]) -> list[tuple[_Fence | None, bool]]:
    """The last fences, each with whether it can be the opening of a block that is closed; None for ``</think>``."""
    found: list[tuple[_Fence | None, bool]] = []
    # By kind, length and quotation: the smallest indentation of a later fence that can close.
    nearest: dict[tuple[str, int, int], int] = {}
    left = _MOST_FENCES
    for number in range(len(lines) - 1, -1, -1):
        if lines[number] == _THOUGHT:
            nearest = {}
            found.append((None, False))
        elif (fence := _fence(number, lines[number])) is not None:
            left -= 1
            if left < 0:
                break
            longer = ((fence.kind, length, fence.quotes) for length in range(fence.length, _LONGEST_FENCE + 1))
            closed = any(nearest[key] < fence.columns + 4 for key in longer if key in nearest)
            found.append((fence, closed and not fence.tag))
            if fence.closes:
                key = (fence.kind, fence.length, fence.quotes)
                nearest[key] = min(fence.columns, nearest.get(key, fence.columns))
    return found[::-1]


def _fence(number: int, line: str) -> _Fence | None:
    match = _FENCE.match(line) if "```" in line or "~~~" in line else None
    if match is None or (match["fence"][0] == "`" and "`" in match["info"]):
        return None
    indent = match["indent"]
    if match["quotes"]:
        indent = indent.removeprefix(" ")  # belongs to the mark
    indent = indent.expandtabs(4)
    return _Fence(
        line=number,
        kind=match["fence"][0],
        length=len(match["fence"]),
        columns=len(indent),
        quotes=match["quotes"].count(">"),
        item=not indent.isspace() and bool(indent),
        info=match["info"].strip(),
    )


def _unindented(line: str, opening: _Fence) -> str:
    """The line without the quotation's marks and as much of its indentation as the opening had."""
    for _ in range(opening.quotes):
        if mark := _QUOTE.match(line):
            line = line[mark.end() :]
    rest = line.lstrip(" \t")
    width = len(line[: len(line) - len(rest)].expandtabs(4))
    if width <= opening.columns:
        return rest
    if not opening.columns:
        return line
    return " " * (width - opening.columns) + rest
