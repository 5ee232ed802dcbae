"""A self-contained HTML page of tables and figures, for studies over several runs."""

import io
import re
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


def switched_by(index: int) -> str:
    """The gid of an artist that the ``index``-th switch of a page shows and hides."""
    return f"switched-{index}"


def svg(figure: Figure) -> Markup:
    """``figure`` as inline SVG with its texts as texts. Ids of :func:`switched_by`, which repeat, become classes."""
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "flowrl"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    return Markup(re.sub(r'<g id="(switched-\d+)">', r'<g class="\1">', text[text.index("<svg") :]))


def write_page(
    path: Path, title: str, intro: str, sections: Sequence[Section], switches: Sequence[tuple[str, str]] = ()
) -> Path:
    """Write the page; an older one is replaced in one step. Returns ``path``.

    Args:
        path, title, intro, sections: of the page.
        switches: name and look of each curve that can be hidden, in the order of :func:`switched_by`; the look is a
            line's of CSS, as ``solid #1f77b4``.
    """
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    html = environment.get_template("page.html.j2").render(
        title=title, intro=intro, sections=sections, switches=switches
    )
    write_text(path, html)
    return path
