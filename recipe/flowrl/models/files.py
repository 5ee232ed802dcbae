"""Where a model's files are: a directory, or the hub's cache."""

import json
import os
from pathlib import Path
from typing import Any

HUB_LIMIT_S = 10
"""For the hub to answer; a run that can't reach it says so itself, when it needs the weights."""


def directory_of(name: str) -> Path | None:
    """The directory of a model, or of its snapshot in the hub's cache; None: it is on no disk here.

    Args:
        name: of a directory, or a model's id on the hub.
    """
    directory = Path(name).expanduser()
    if directory.is_dir():
        return directory
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        cached = try_to_load_from_cache(name, "config.json")
    except HFValidationError:
        return None
    return Path(cached).parent if isinstance(cached, str) else None


def architecture_of(name: str) -> dict[str, Any] | None:
    """The content of a model's config.json; of one on the hub, that file alone is fetched. None: it can't be had.

    Args:
        name: of a directory, or a model's id on the hub.
    """
    directory = directory_of(name)
    if directory is None and not _offline():
        directory = _fetched(name)
    try:
        architecture = json.loads((directory / "config.json").read_text()) if directory else None
    except (OSError, ValueError):
        return None
    return architecture if isinstance(architecture, dict) else None


def _offline() -> bool:
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")


def _fetched(name: str) -> Path | None:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        return Path(hf_hub_download(name, "config.json", etag_timeout=HUB_LIMIT_S)).parent
    except (OSError, ValueError, HFValidationError, HfHubHTTPError):
        return None
