"""The front door: its list of commands, their help, their grammar, and the exit status of whatever ends them."""

import dataclasses
import importlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from recipe.flowrl.__main__ import COMMANDS, main
from recipe.flowrl.common.command_line import Command, is_required, parse
from recipe.flowrl.common.errors import UserError
from recipe.flowrl.common.project import PROJECT

DOOR = [sys.executable, "-m", "recipe.flowrl"]
IN_ORDER = (
    "train prepare plan doctor submit status replay export report evaluate diversity tables compare distribution"
).split()


def command(name: str) -> Command:
    return importlib.import_module(f"recipe.flowrl.commands.{name}").COMMAND


def said(capsys: pytest.CaptureFixture[str], *arguments: str, status: int) -> str:
    """What a command prints: to stdout where it succeeds, else the one line on stderr."""
    assert main(arguments) == status
    out, err = capsys.readouterr()
    assert status == 0 or err.count("\n") == 1, err
    return out if status == 0 else err


def test_the_list_is_in_the_order_in_which_a_user_needs_it(capsys: pytest.CaptureFixture[str]) -> None:
    listed = re.findall(r"^  (\w+)  +(.+)$", said(capsys, "--help", status=0), re.M)
    assert [name for name, _ in listed] == IN_ORDER == list(COMMANDS)
    assert all(summary.endswith(".") for _, summary in listed)


def test_every_command_has_a_module_and_every_module_is_a_command() -> None:
    modules = {path.stem for path in (PROJECT / "recipe/flowrl/commands").glob("*.py")}
    assert modules - {"__init__", "configuration"} == set(COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_of_a_command(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = said(capsys, name, "--help", status=0)
    flat = " ".join(text.split())
    assert text.startswith(f"python -m recipe.flowrl {name}") and "Example" in text
    for field in dataclasses.fields(command(name).options):
        about = field.metadata["option"]
        assert about.doc.endswith(".") and " ".join(about.doc.split()) in flat, field.name
        if not about.overrides:
            written = rf" {field.name}(?:\.NAME)?=VALUE(?: \(or \S+ by itself\))?"
            line = re.search(rf"{written}: (?P<type>.+?); (?P<default>required|default: .)", flat)
            assert line, f"{field.name}: type and default"
            assert (line["default"] == "required") == is_required(field)


@pytest.mark.parametrize("name", [name for name in COMMANDS if not command(name).hydra])
def test_the_examples_are_taken(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "any")
    for example in command(name).examples:
        words = [re.sub(r"EVALUATION$|^outputs/evaluation\S*$", str(tmp_path), word) for word in example.split()]
        parse(command(name).options, words)


@pytest.mark.parametrize("arguments", [["--help"], ["evaluate", "--help"], ["diversity", "--help"], ["train", "-h"]])
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    program = (
        "import sys; from recipe.flowrl.__main__ import main; main(sys.argv[1:]); "
        "print([name for name in ('torch', 'verl', 'ray', 'vllm', 'transformers') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program, *arguments], cwd=PROJECT, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "[]", done.stderr


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["evalute"], "did you mean 'evaluate'?"),
        (["statsu", "outputs"], "did you mean 'status'?"),
        (
            ["evaluate", "model=m", "suite=math", "temprature=1"],
            "temprature: no such option (did you mean 'temp",
        ),
        (
            ["evaluate", "model=m", "suite=maths"],
            "suite=maths: must be 'math' | 'code' | 'gsm8k' | 'countdown' (did",
        ),
        (["evaluate", "model=m", "suite=math", "n=many"], "n=many: must be an integer >= 1"),
        (["evaluate", "suite=math"], "model= is missing: Hugging Face directory"),
        (["evaluate", "model=m", "suite=math", "--n=4"], "--n=4: options are written KEY=VALUE (did you mean 'n'?)"),
        (["evaluate", "model=m", "suite=math", "engine=4"], "write each setting as engine.NAME=VALUE"),
        (["evaluate", "model=${oc.env:NOT_SET_ANYWHERE}", "suite=math"], "NOT_SET_ANYWHERE"),
        (["status"], "RUN_DIR is missing"),
        (["status", "a", "b"], "b: one too many; expected RUN_DIR"),
        (["export", "a", "b", "dtype=float64"], "dtype=float64: must be 'float32' | 'bfloat16' | 'float16'"),
        (["submit", "--dry-run", "experiment=countdown_cpu"], "options are written KEY=VALUE"),
        (["submit", "show=yes", "experiment=countdown_cpu"], "show=yes: must be true | false"),
        (["plan", "experiment=math_7b"], "gpu= is missing"),
        (["plan", "experiment=math_7B", "gpu=h100_80gb"], "math_7b"),
        (["doctor", "experimnt=math_7b"], "did you mean experiment"),
        (["prepare"], "NAME is missing"),
        (["prepare", "contdown"], "names=contdown: must be"),
        (["prepare", "countdown", "skip=aime24"], "skip=: is for a public set"),
        (["prepare", "gsm8k", "pause_s=1"], "pause_s=: is for codeforces_standings"),
        (["prepare", "math", "code", "out=x"], "out= is one directory, for one name"),
        (["report", "nowhere"], "nowhere: no such file or directory"),
        (["report", "pyproject.toml"], "isn't the outcome of a study"),
        (["compare", "algos=grop"], "did you mean 'grpo'"),
        (["compare", "steps"], "'steps': expected KEY=VALUE (did you mean 'steps'?)"),
        (["distribution", "run_dir=x", "algo=flwrl"], "did you mean 'flowrl'"),
    ],
)
def test_bad_input_is_one_line_and_status_2(
    arguments: list[str], part: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(PROJECT)
    assert part in said(capsys, *arguments, status=2)


def test_without_a_command_the_list_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "COMMAND --help" in capsys.readouterr().out


@pytest.mark.parametrize("error", [UserError("x"), RuntimeError("x"), KeyboardInterrupt(), SystemExit(7)])
def test_what_ends_a_command_is_an_exit_status(
    error: BaseException, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> str:
        raise error

    monkeypatch.setattr("recipe.flowrl.run.status.status", fails)
    expected = {UserError: 2, RuntimeError: 1, KeyboardInterrupt: 130, SystemExit: 7}
    assert main(["status", "x"]) == expected[type(error)]
    assert "Traceback" not in capsys.readouterr().err


def _into_a_closed_pipe(*arguments: str, unbuffered: bool = False) -> subprocess.CompletedProcess[str]:
    reading, writing = os.pipe()
    os.close(reading)
    environment = os.environ | ({"PYTHONUNBUFFERED": "1"} if unbuffered else {})
    try:
        return subprocess.run(
            [*DOOR, *arguments], cwd=PROJECT, stdout=writing, stderr=subprocess.PIPE, text=True, env=environment
        )
    finally:
        os.close(writing)


@pytest.mark.parametrize("unbuffered", [False, True])
@pytest.mark.parametrize("arguments", [["--help"], ["train", "-h"], ["status", "{run}"]])
def test_a_reader_that_has_left_is_no_traceback(arguments: list[str], unbuffered: bool, tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text('{"finished": 1.0, "exit_status": 0}')
    done = _into_a_closed_pipe(*(word.format(run=tmp_path) for word in arguments), unbuffered=unbuffered)
    assert (done.returncode, done.stderr) == (141, "")


def test_another_broken_pipe_is_a_failure(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> str:
        raise BrokenPipeError("the server has left")

    monkeypatch.setattr("recipe.flowrl.run.status.status", fails)
    assert main(["status", "x"]) == 1
    assert "the server has left" in capsys.readouterr().err


def test_train_is_main_flowrl() -> None:
    """The same configuration, Hydra's own flags included, and the same refusal."""
    arguments = ["experiment=countdown_cpu", "algo=grpo", "run_dir=here", "--cfg", "job"]
    main_flowrl = [sys.executable, "-m", "recipe.flowrl.main_flowrl"]
    by_door, by_module = (
        subprocess.run([*start, *arguments], cwd=PROJECT, capture_output=True, text=True)
        for start in ([*DOOR, "train"], main_flowrl)
    )
    assert by_door.returncode == 0 and "run_dir: here" in by_door.stdout
    assert (by_door.stdout, by_door.stderr) == (by_module.stdout, by_module.stderr)


def test_the_console_script_is_the_front_door() -> None:
    assert 'flowrl = "recipe.flowrl.__main__:main"' in (PROJECT / "pyproject.toml").read_text()


STUDY = PROJECT / "benchmarks" / "countdown" / "learning_rates.json"


def test_the_reports_of_what_is_in_the_repository(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A page of a study and one of distributions, which need nothing else; none is kept."""
    sources = {STUDY: "pass@k", PROJECT / "benchmarks" / "distribution": "KL to the target"}
    for source, part in sources.items():
        page = tmp_path / "page.html"
        assert said(capsys, "report", str(source), f"out={page}", status=0) == f"{page}\n"
        html = page.read_text()
        assert part in html and "<svg" in html and "<script src" not in html
        page.unlink()
    tracked = subprocess.run(["git", "ls-files", "*.html"], cwd=PROJECT, capture_output=True, text=True).stdout
    assert not tracked, "a rendered report is in the repository"


def test_the_studies_of_a_directory(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study = json.loads(STUDY.read_text())
    (tmp_path / "settings.json").write_text("{}")
    (tmp_path / "one.json").write_text(json.dumps(study))
    assert said(capsys, "report", str(tmp_path), status=0) == f"{tmp_path}/one.html\n"
    (tmp_path / "two.json").write_text(json.dumps(study))
    assert "name one of them" in said(capsys, "report", str(tmp_path), f"out={tmp_path}/x.html", status=2)
    (tmp_path / "two.json").write_text(json.dumps(study | {"runs": {"flowrl": {"0": {}}}}))
    assert "two.json is damaged" in said(capsys, "report", str(tmp_path / "two.json"), status=2)
