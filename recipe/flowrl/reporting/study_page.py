"""A self-contained HTML page of tables and figures, for studies over several runs."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure

from recipe.flowrl.common.files import write_text

_TEMPLATES = Path(__file__).parent / "templates"


@dataclass(frozen=True)
class Table:
    """``rows`` of texts under ``header``; the first column names the row."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Section:
    """A heading, a paragraph, and a table or a figure (inline SVG, see :func:`svg`)."""

    title: str
    text: str
    table: Table | None = None
    figure: Markup | None = None


def line_style(index: int) -> dict[str, Any]:
    """Color and line of the ``index``-th of many curves; no two of the first 40 alike."""
    palette = matplotlib.colormaps["tab20"].colors
    return {"color": palette[index % len(palette)], "linestyle": "--" if index >= len(palette) else "-"}


def svg(figure: Figure) -> Markup:
    """``figure`` as inline SVG with its texts as texts."""
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "flowrl"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    return Markup(text[text.index("<svg") :])


def write_page(path: Path, title: str, intro: str, sections: Sequence[Section]) -> Path:
    """Write the page; an older one is replaced in one step. Returns ``path``."""
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    html = environment.get_template("page.html.j2").render(title=title, intro=intro, sections=sections)
    write_text(path, html)
    return path
