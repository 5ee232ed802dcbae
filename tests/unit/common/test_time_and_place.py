"""Several hosts on one file system, locks that aren't there or whose owner is dead, and odd surroundings."""

import errno
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest

from recipe.flowrl.__main__ import COMMANDS, main
from recipe.flowrl.common import cache, files
from recipe.flowrl.common.errors import BAD_INPUT, CUT_OFF, UserError, exit_status_of
from recipe.flowrl.common.files import alone_in
from recipe.flowrl.common.project import PROJECT
from recipe.flowrl.preflight import machine

# ---- locks and names -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_file_system_without_locks_is_written_to(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(files.fcntl, "flock", refuse)
    with alone_in(tmp_path), alone_in(tmp_path):
        pass
    assert cache.ensure(tmp_path / "data", "key", lambda directory: (directory / "x").touch()).is_dir()


def test_another_failure_of_a_lock_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(files.fcntl, "flock", refuse)
    with pytest.raises(OSError, match="Input/output error"), alone_in(tmp_path):
        pass


def test_a_lock_ends_with_its_owner(tmp_path: Path) -> None:
    code = (
        "import pathlib, sys, time; from recipe.flowrl.common.files import alone_in\n"
        "with alone_in(pathlib.Path(sys.argv[1])): print('locked', flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    owner = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(PROJECT)}, stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None and owner.stdout.readline() == "locked\n"
    with pytest.raises(UserError, match=r"another process is writing there.*remove .*\.lock"), alone_in(tmp_path):
        pass
    owner.send_signal(signal.SIGKILL)
    owner.wait()
    with alone_in(tmp_path):
        pass


def test_hosts_with_the_same_process_id_share_a_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each builds, and points the link there, at the same time; one's temporary names never are another's."""
    monkeypatch.setattr(os, "getpid", lambda: 7)
    together, failed = threading.Barrier(8), []

    def host(number: int) -> None:
        def build(directory: Path) -> None:
            (directory / "data").write_text("whole")
            together.wait(10)

        try:
            cache.ensure(tmp_path / "data", "key", build)
            for other in range(50):
                cache._point(tmp_path / "data", tmp_path / f"data-{other % 2}")
        except BaseException as error:
            failed.append(error)

    hosts = [threading.Thread(target=host, args=(number,)) for number in range(8)]
    for thread in hosts:
        thread.start()
    for thread in hosts:
        thread.join()
    assert not failed
    assert (tmp_path / "data-key/data").read_text() == "whole"
    assert sorted(os.listdir(tmp_path)) == ["data", "data-key"], "nothing temporary is left"


def test_a_build_that_was_killed_is_not_taken(tmp_path: Path) -> None:
    (tmp_path / ".data-key.abcd").mkdir()  # what a killed one leaves
    cache.ensure(tmp_path / "data", "key", lambda directory: (directory / "x").touch())
    assert os.listdir(tmp_path / "data") == ["x"]


# ---- surroundings --------------------------------------------------------------------------------------------------


@pytest.fixture
def unsettled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", None)


@pytest.mark.usefixtures("unsettled")
def test_a_directory_for_temporary_files_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path / "missing"))
    with pytest.raises(UserError, match=r"TMPDIR=.*missing isn't a directory that can be written"):
        machine._check_temporary_directory()
    monkeypatch.setenv("TMPDIR", "/proc/self")
    tempfile.tempdir = None
    with pytest.raises(UserError, match="TMPDIR=/proc/self isn't a directory"):
        machine._check_temporary_directory()


@pytest.mark.usefixtures("unsettled")
def test_no_directory_for_temporary_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TMPDIR", raising=False)
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: ["/proc/self"])
    with pytest.raises(UserError, match="set TMPDIR"):
        machine._check_temporary_directory()


@pytest.mark.usefixtures("unsettled")
def test_a_path_too_long_for_sockets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    if len(str(tmp_path)) > machine._LONGEST_TMPDIR:
        with pytest.raises(UserError, match=f"may have {machine._LONGEST_TMPDIR}: TMPDIR=/tmp"):
            machine._check_temporary_directory()
    monkeypatch.setenv("TMPDIR", "/tmp")
    tempfile.tempdir = None
    machine._check_temporary_directory()


def test_a_locale_without_utf8_is_left() -> None:
    """Help texts aren't ASCII, and neither are configurations."""
    environment = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(PROJECT),
        "LANG": "C",
        "PYTHONUTF8": "0",
        "PYTHONCOERCECLOCALE": "0",
    }
    done = subprocess.run([sys.executable, "-m", "recipe.flowrl", "--help"], env=environment, capture_output=True)
    assert done.returncode == 0 and "…" in done.stdout.decode()


def test_a_reader_that_leaves_ends_a_command_without_a_word(tmp_path: Path) -> None:
    """``| head``: of each command's help, of what some print, and of the list."""
    (tmp_path / "run.json").write_text('{"started": 1}')
    printing = [["--help"], ["status", str(tmp_path)], ["plan", "experiment=math_7b", "cluster=1x8", "gpu=h100_80gb"]]
    code = """
import json, os, sys
from recipe.flowrl.__main__ import main
saved = os.dup(1)
for arguments in json.loads(sys.argv[1]):
    reading, writing = os.pipe()
    os.close(reading)
    os.dup2(writing, 1)
    os.close(writing)
    status = main(arguments)
    os.dup2(saved, 1)
    print(status, *arguments[:1], flush=True)
"""

    commands = [*printing, *([name, "--help"] for name in COMMANDS)]
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(commands)],
        env={**os.environ, "PYTHONPATH": str(PROJECT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stdout.splitlines() == [f"{CUT_OFF} {arguments[0]}" for arguments in commands], done.stderr
    assert not done.stderr


@pytest.mark.parametrize("arguments", [["status", "n" * 300], ["report", "n" * 300], ["export", "n" * 300, "out"]])
def test_a_name_that_is_too_long_is_bad_input(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == BAD_INPUT
    (line,) = capsys.readouterr().err.splitlines()
    assert "a name of more bytes than the file system takes" in line and len(line) < 200


def test_a_message_has_no_say_over_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_status_of(UserError("\x1b]0;owned\x07 data source '\u202eevil'")) == BAD_INPUT
    shown = capsys.readouterr().err
    assert "owned" in shown and not {"\x1b", "\x07", "\u202e"} & set(shown)


def test_runs_of_a_study_have_directories_of_their_own(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "study=countdown", "run_dir=x"]) == BAD_INPUT
    assert "dir= is that of them all" in capsys.readouterr().err
