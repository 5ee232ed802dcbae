"""A table as Markdown, LaTeX and rows of CSV."""

import csv
import io
import re
from collections.abc import Sequence

from recipe.flowrl.common.terminal import printable
from recipe.flowrl.tables.blocks import DIFFERENCE, PAPER, Block, Row
from recipe.flowrl.tables.numbers import Cell

GAP = "–"
_MARKDOWN = re.compile(
    r"[\\`*\[\]!|~]|(?<!\w)_|_(?!\w)|^[#>]|^(?:[-+]|\d+[.)])(?=\s)|(?<=http)(?=s?://)|(?<=www)(?=\.)"
)
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "|", "＝", "＋", "－", "＠")
_LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "−": "$-$", "–": "--", "β": r"$\beta$", "±": r"$\pm$",
    "…": r"\dots{}", "≥": r"$\geq$",
}  # fmt: skip


def cell_text(cell: Cell, decimals: int, signed: bool) -> str:
    """``12.3 [10.1, 14.5]``; :data:`GAP` where it is missing."""
    if cell.value is None:
        return GAP
    form = f"{{:{'+' if signed else ''}.{decimals}f}}"
    texts = [
        form.format(number).replace("-", "−") for number in (cell.value, cell.low, cell.high) if number is not None
    ]
    return texts[0] if len(texts) < 3 else f"{texts[0]} [{texts[1]}, {texts[2]}]"


def header(block: Block) -> list[str]:
    """Titles of all columns; the first is of the rows' names."""
    return ["", *(["figures"] if _has_sources(block) else []), *block.columns]


def texts(block: Block) -> list[list[str]]:
    """All cells as text."""
    return [
        [
            row.name,
            *([row.source] if _has_sources(block) else []),
            *(
                # Published figures keep their decimals.
                cell_text(c, 2 if row.source == PAPER else decimals, _is_signed(block, row))
                for c, decimals in zip(row.cells, block.columns.values(), strict=True)
            ),
        ]
        for row in block.rows
    ]


def markdown(blocks: Sequence[Block]) -> str:
    """All tables, a section each."""
    parts = []
    for block in blocks:
        titles = list(map(markdown_text, header(block)))
        lines = [f"## {markdown_text(block.title)}", "", _line(titles), _line(["---", *["---:"] * (len(titles) - 1)])]
        lines += [_line(list(map(markdown_text, row))) for row in texts(block)]
        parts.append("\n".join([*lines, "", *(f"{markdown_text(note)}\n" for note in block.notes)]))
    return "\n".join(parts)


def latex(blocks: Sequence[Block]) -> str:
    """All tables, a ``table`` each, for ``booktabs`` and ``graphicx``."""
    parts = ["% \\usepackage{booktabs,graphicx}"]
    for block in blocks:
        titles = header(block)
        left = "ll" if _has_sources(block) else "l"
        shape = left + "r" * (len(titles) - len(left))
        rows = [" & ".join(map(escape, row)) + r" \\" for row in texts(block)]
        caption = escape(" ".join([f"{block.title}.", *block.notes]))
        parts.append(
            "\n".join(
                [
                    r"\begin{table}",
                    rf"\caption{{{caption}}}",
                    rf"\label{{tab:{_label(block.key)}}}",
                    r"\resizebox{\textwidth}{!}{%",
                    rf"\begin{{tabular}}{{{shape}}}",
                    r"\toprule",
                    " & ".join(map(escape, titles)) + r" \\",
                    r"\midrule",
                    *rows,
                    r"\bottomrule",
                    r"\end{tabular}}",
                    r"\end{table}",
                ]
            )
        )
    return "\n\n".join(parts) + "\n"


def csv_text(blocks: Sequence[Block]) -> str:
    """All tables, a line for each cell; empty where a number is missing. ``notes`` are the table's."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["table", "row", "figures", "column", "value", "low", "high", "notes"])
    for block in blocks:
        for row in block.rows:
            for title, cell in zip(block.columns, row.cells, strict=True):
                numbers = ["" if n is None else f"{n:.6g}" for n in (cell.value, cell.low, cell.high)]
                words = map(csv_cell, (block.key, row.name, row.source, title))
                writer.writerow([*words, *numbers, csv_cell(" ".join(block.notes))])
    return buffer.getvalue()


def escape(text: str) -> str:
    """``text`` with LaTeX's special characters made harmless, in one line: a blank one would end an argument."""
    return "".join(_LATEX.get(character, character) for character in _one_line(text))


def markdown_text(text: str) -> str:
    """``text`` that Markdown shows as it is: no table cell, HTML, link, image, code or emphasis begins in it."""
    return _MARKDOWN.sub(r"\\\g<0>", _one_line(text).replace("&", "&amp;").replace("<", "&lt;"))


def csv_cell(text: str) -> str:
    """``text`` that a spreadsheet doesn't take for a formula: an apostrophe stands before what begins like one."""
    text = _one_line(text)
    return f"'{text}" if text.startswith(_FORMULA) else text


def _label(key: str) -> str:
    """``key`` as a LaTeX label, in which no special character can be escaped."""
    return re.sub(r"[^A-Za-z0-9.:]+", "-", key)


def _one_line(text: str) -> str:
    return " ".join(printable(text).split())


def _has_sources(block: Block) -> bool:
    return len({row.source for row in block.rows}) > 1


def _is_signed(block: Block, row: Row) -> bool:
    return block.signed or row.source == DIFFERENCE


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
