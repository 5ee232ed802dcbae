"""The model to evaluate: where it is, what it is called, and whether it is the same as last time."""

import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from recipe.flowrl.checkpoint.export import export
from recipe.flowrl.common.cache import fingerprint
from recipe.flowrl.common.errors import UserError

_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
_IN_A_RUN = ("checkpoints", "actor", "outputs", "")
"""Parts of a checkpoint's path that don't tell one from another."""


def model_name(model: str) -> str:
    """A name for directories: the last part of a hub name or directory; run and step of a checkpoint."""
    parts = [part for part in Path(model).parts if part not in (*_IN_A_RUN, "/", "..", ".")]
    steps = [index for index, part in enumerate(parts) if re.fullmatch(r"global_step_\d+", part)]
    chosen = parts[max(0, steps[-1] - 2) : steps[-1] + 1] if steps else parts[-1:]
    return "-".join(chosen) or "model"


def model_fingerprint(model: str) -> str | None:
    """Stands for the content of a local model, by name, size and time of its files; None for a hub's or server's."""
    root = Path(model)
    if not root.is_dir():
        return None
    files = [path for path in sorted(root.rglob("*")) if path.is_file()]
    return fingerprint([[str(path.relative_to(root)), *_size_and_time(path)] for path in files])


def _size_and_time(path: Path) -> tuple[int, int]:
    facts = path.stat()
    return facts.st_size, facts.st_mtime_ns


@contextmanager
def model_directory(model: str, trust: bool = False) -> Iterator[str]:
    """The model in Hugging Face's layout: itself, or an export of the checkpoint for as long as the block lasts.

    Args:
        model: directory, checkpoint or hub name.
        trust: a checkpoint may run code while it is read.

    Yields:
        A directory, or a name on the hub.

    Raises:
        UserError: neither, or an incomplete checkpoint.
    """
    path = Path(model).expanduser()
    if (path / "config.json").is_file():
        yield str(path)
    elif any((folder / "fsdp_config.json").is_file() for folder in (path, path / "actor")):
        with tempfile.TemporaryDirectory(prefix="flowrl_model_") as scratch:
            exported = Path(scratch, "model")
            export(path, exported, trust=trust)
            yield str(exported)
    elif not path.exists() and _HUB_NAME.fullmatch(model):
        yield model
    else:
        raise UserError(
            f"model={model}: {'holds no config.json and is no checkpoint' if path.exists() else 'is not there'}: name "
            "a Hugging Face directory or hub name, or a .../global_step_N"
        )
