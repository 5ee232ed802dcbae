"""Files of others that would be waited for, have no end, or stand for more than they hold; and where writing ends."""

import errno
import gzip
import os
import threading
from pathlib import Path

import pytest
import yaml

from recipe.flowrl.__main__ import main
from recipe.flowrl.common import foreign
from recipe.flowrl.common.errors import UserError
from recipe.flowrl.diversity.evaluations import _rows
from recipe.flowrl.evaluate import records
from recipe.flowrl.evaluate.records import Records
from verl_ext.files import open_own, replacing, write_text

ALIASES = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 9)}]\n" for level in range(1, 10)
)
"""9 to the power of 10 values in ten lines."""


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run's directory with a metric and a record."""
    (tmp_path / "run.json").write_text('{"started": 1, "attempts": 1}')
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "critic/score/mean": 0.1}\n')
    return tmp_path


def make(kind: str, path: Path) -> None:
    path.unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "endless":
        path.symlink_to("/dev/zero")
    else:
        path.mkdir()


@pytest.mark.parametrize("kind", ["pipe", "endless", "directory"])
def test_only_ordinary_files_are_read(kind: str, tmp_path: Path) -> None:
    make(kind, tmp_path / "x")
    with pytest.raises(OSError, match="is no ordinary file"):
        foreign.read_text(tmp_path / "x")


def test_a_file_that_is_too_large_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "x").open("wb") as file:
        file.truncate(2**40)  # a hole: it takes no room on the disk
    with pytest.raises(OSError, match="has more than 1073741824 bytes"):
        foreign.read_bytes(tmp_path / "x")


@pytest.mark.parametrize("kind", ["pipe", "endless", "directory"])
@pytest.mark.parametrize("name", ["run.json", "metrics.jsonl", "events.jsonl", "config.yaml", "base_policy.json"])
def test_a_runs_directory_with_such_a_file_is_told_of(
    kind: str, name: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make(kind, run / name)
    for command in ("status", "report"):
        done = main([command, str(run)])
        assert done in (0, 2) and capsys.readouterr().err.count("\n") == (1 if done else 0)


def test_aliases_of_aliases_are_not_followed(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "config.yaml").write_text(ALIASES)
    assert main(["status", str(run)]) == main(["report", str(run)]) == 0
    assert "an alias, which no run writes" in (run / "report.html").read_text()
    batch = run / "nonfinite" / "step_1_rank_0.pt"
    batch.parent.mkdir()
    batch.touch()
    capsys.readouterr()
    assert main(["replay", str(batch)]) == 2
    assert "line 2: an alias" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["a: 1\nb: '*a'\nc: [1, 2]", "a: &x 1", "a: '&x'"])
def test_yaml_without_aliases_is_as_it_was(text: str) -> None:
    assert foreign.without_aliases(text) == text
    with pytest.raises(yaml.YAMLError, match="line 2"):
        foreign.without_aliases("a: &x 1\nb: *x")


def test_what_is_compressed_is_bounded_as_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x").write_bytes(gzip.compress(b'{"problem": "' + b"0" * 50_000 + b'", "sample": 0}\n'))
    assert len(Records(tmp_path / "x").by_problem) == len(list(_rows(tmp_path / "x", ()))) == 1
    monkeypatch.setattr(records, "MOST_BYTES", 10_000)
    with pytest.raises(UserError, match="a problem of more than 10000 bytes"):
        Records(tmp_path / "x")
    monkeypatch.setattr("recipe.flowrl.diversity.evaluations.MOST_BYTES", 10_000)
    with pytest.raises(UserError, match="can't be read"):
        list(_rows(tmp_path / "x", ()))


@pytest.mark.parametrize("kind", ["pipe", "endless", "directory"])
def test_what_is_no_ordinary_file_is_not_replaced(kind: str, tmp_path: Path) -> None:
    """Root's ``out=/dev/null`` would replace it for all the machine, ``out=/dev/stdout`` the link."""
    make(kind, tmp_path / "x")
    before = os.lstat(tmp_path / "x")
    with pytest.raises(OSError, match="isn't replaced"):
        write_text(tmp_path / "x", "text")
    assert os.lstat(tmp_path / "x") == before and os.listdir(tmp_path) == ["x"]


def test_a_link_to_nothing_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "x").symlink_to(tmp_path / "nothing")
    with replacing(tmp_path / "x") as temporary:
        temporary.write_text("text")
    assert (tmp_path / "x").read_text() == "text" and not (tmp_path / "x").is_symlink()


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x")
    failed: list[OSError] = []

    def write() -> None:
        try:
            open_own(tmp_path / "x", os.O_APPEND)
        except OSError as error:
            failed.append(error)

    thread = threading.Thread(target=write, daemon=True)
    thread.start()
    thread.join(5)
    assert [error.errno for error in failed] == [errno.ENXIO]
