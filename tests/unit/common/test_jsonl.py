"""JSON lines: no text ends a line, and a line that a kill cut off costs nobody else's."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recipe.flowrl.common.jsonl import JsonLines, to_line, values

HARD = st.text(max_size=9) | st.text("\u2028\u2029\x85\x0b\x0c\x1c\r\n\ud83d\x00", max_size=9)
"""With half a surrogate pair; both halves in a row are read as the character that they are."""


@given(st.lists(st.dictionaries(HARD, HARD, max_size=2), max_size=4))
@settings(max_examples=60, deadline=None)
def test_what_is_written_is_read(rows: list[dict[str, str]]) -> None:
    text = "".join(map(to_line, rows))
    assert len(text.splitlines()) == len(rows) and list(values(text.encode())) == rows


@pytest.mark.parametrize("left", [b'{"a": 1', b'{"a": "\xe2\x80', b"", b"[" * 100_000])
def test_a_line_that_was_cut_costs_itself_only(left: bytes, tmp_path: Path) -> None:
    log = JsonLines(tmp_path / "log.jsonl")
    assert log.read() == []
    log.append("first\u2028line")
    with open(log.path, "ab") as file:
        file.write(left)
    log.append({"b": "\ud83d"})
    log.append(3)
    assert log.read() == ["first\u2028line", {"b": "\ud83d"}, 3]
