"""How the pictures of the documents are written."""

from pathlib import Path

from matplotlib.figure import Figure

from recipe.flowrl.common.files import replacing


def save_picture(figure: Figure, path: Path) -> None:
    """Write a PNG file; an older one is replaced in one step. The same numbers make the same file."""
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=130, metadata={"Software": None})  # no version of the library
