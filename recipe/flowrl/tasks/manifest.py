"""What a directory of prepared data holds: rows and SHA-256 of each file, written last and checked before a run."""

import json
from pathlib import Path
from typing import Any

from recipe.flowrl.common.errors import UserError
from verl_ext.files import MANIFEST, sha256, write_json


def write_manifest(directory: Path, rows: dict[str, int], **facts: Any) -> Path:
    """Write the manifest of ``directory``, whose files have so many ``rows``, with other ``facts`` beside them."""
    files = {name: {"rows": count, "sha256": sha256(directory / name)} for name, count in rows.items()}
    write_json(directory / MANIFEST, {"files": files, **facts}, indent=2)
    return directory / MANIFEST


def check_file(path: Path) -> None:
    """Check that ``path`` is as the manifest beside it says, if there is one that names it.

    Raises:
        UserError: the file has changed, or the manifest can't be read.
    """
    manifest = path.with_name(MANIFEST)
    if not manifest.is_file():
        return
    try:
        recorded = json.loads(manifest.read_text())["files"].get(path.name)
        digest = recorded and recorded["sha256"]
    except (ValueError, LookupError, AttributeError, TypeError) as error:
        raise UserError(f"{manifest} can't be read: prepare the data again, or remove it") from error
    if digest and digest != sha256(path):
        raise UserError(
            f"{path} isn't the file that {manifest} was written for (its SHA-256 differs): prepare the data again, or "
            "remove the manifest if you changed it on purpose"
        )
