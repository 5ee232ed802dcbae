"""Every command line of the README and the docs is one that the code takes."""

import dataclasses
import importlib
import os
import re
import shlex
from collections.abc import Sequence
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from test_configs import composed, options

from recipe.flowrl.__main__ import COMMANDS
from recipe.flowrl.common.command_line import is_required, parse
from recipe.flowrl.common.project import PROJECT

PAGES = [PROJECT / "README.md", *sorted((PROJECT / "docs").glob("*.md"))]
STARTS = re.compile(
    r"(?:[A-Z_]+=\S+ )*(?:(?:python -m recipe\.flowrl|flowrl) (?P<command>[a-z]+)"
    r"|python -m (?P<module>recipe[\w.]+)|(?P<script>recipe/flowrl/scripts/run_\S+\.sh))(?=\s|$)(?P<rest>.*)"
)
PLACEHOLDERS = ("...", "…", "[any", "Hydra", "override]", "$")
MAIN = "recipe.flowrl.main_flowrl"
"""What is started as a module beside the front door."""
SOURCES = {".py", ".md", ".yaml", ".sh", ".sbatch", ".example"}


def commands() -> list[tuple[str, str, str]]:
    """Page, command or module or script, and arguments of each command, in fenced blocks and between backquotes."""
    found = []
    for page in PAGES:
        text = page.read_text()
        fences = re.findall(r"```bash\n(.*?)```", text, re.S)
        lines = [line.split("  #")[0].strip() for block in fences for line in block.replace("\\\n", " ").splitlines()]
        inline = re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", text, flags=re.S))
        for line in [*lines, *inline]:
            if start := STARTS.match(line):
                program = start["command"] or start["module"] or start["script"]
                found.append((page.name, program, start["rest"].strip()))
    return sorted(set(found))


def arguments(text: str) -> list[str]:
    """Without what stands for something that the reader fills in, and without the brackets of what may be left out."""
    words = [word for word in shlex.split(text) if not any(part in word for part in PLACEHOLDERS)]
    return [word[1:-1] if word.startswith("[") and word.endswith("]") else word for word in words]


def _composes(words: Sequence[str]) -> None:
    OmegaConf.resolve(composed(*words, "trainer.experiment_name=x"))


def _is_taken(name: str, words: list[str], directory: Path) -> None:
    """The front door takes the words of a command; what is left to the reader stands for ``directory``."""
    command = importlib.import_module(f"recipe.flowrl.commands.{name}").COMMAND
    if command.hydra:
        _composes(words)
        return
    filled = [re.sub(r"(?<=contests=).*|^(?!.*=).*\*$|^EVAL\w*$", str(directory), word) for word in words]
    given = {word.partition("=")[0] for word in filled if "=" in word}
    by_place = sum("=" not in word for word in filled)
    for field in dataclasses.fields(command.options):
        about = field.metadata["option"]
        if about.place and by_place:
            by_place -= 1
        elif is_required(field) and field.name not in given:
            filled.append(f"{field.name}={directory}")
    options = parse(command.options, filled)
    if hasattr(options, "overrides"):
        _composes(options.overrides)


@pytest.mark.parametrize(("page", "program", "rest"), commands())
def test_a_documented_command(
    page: str, program: str, rest: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "any")
    words = arguments(rest)
    if program.endswith(".sh"):
        assert os.access(PROJECT / program, os.X_OK)
        _composes(words)
    elif program == MAIN:
        if not any(word.startswith("hydra.searchpath=") for word in words):  # its files: test_extending.py
            _composes(words)
    elif program == "recipe.flowrl":
        assert words == ["--help"]
    else:
        assert program in COMMANDS
        if words:  # not only its name, in a sentence
            _is_taken(program, words, tmp_path)


def test_commands_are_found() -> None:
    programs = {program for _, program, _ in commands()}
    assert {MAIN, *COMMANDS} <= programs, "each command is documented"
    assert len(commands()) > 30


def test_what_is_not_started_through_the_front_door_is_no_command() -> None:
    folders = ("recipe", "verl_ext", "configs", "slurm", "docs")
    files = [PROJECT / "README.md", *(path for folder in folders for path in (PROJECT / folder).rglob("*"))]
    texts = [path.read_text() for path in files if path.suffix in SOURCES]
    named = {found for text in texts for found in re.findall(r"python -m (recipe[\w.]*)", text)}
    assert named == {MAIN, "recipe.flowrl"}


TARGETS = sorted(set(re.findall(r"(?:`|^)make ([a-z-]+)", "\n".join(page.read_text() for page in PAGES), re.M)))


@pytest.mark.parametrize("target", TARGETS)
def test_a_target_of_make(target: str) -> None:
    assert re.search(rf"^{target}:", (PROJECT / "Makefile").read_text(), re.M), target


def _table_overrides() -> list[str]:
    table = (PROJECT / "README.md").read_text().partition("| override | what |")[2].partition("\n\n")[0]
    cells = [line.split("| ")[1] for line in table.splitlines()[2:]]
    return [code for cell in cells for code in re.findall(r"`([a-z][\w.]*=[^`]*)`", cell)]


@pytest.mark.parametrize("override", _table_overrides())
def test_an_override_of_the_table(override: str) -> None:
    """Hydra refuses a key that isn't there."""
    composed("experiment=countdown_cpu", override.replace("…", "1"))


def test_the_algorithms_named_in_the_readme_exist() -> None:
    line = next(line for line in (PROJECT / "README.md").read_text().splitlines() if line.startswith("| `algo="))
    named = re.findall(r"`(?:algo=)?([a-z_]+)`", line.split(" | ")[0])
    assert set(named) <= set(options("algo"))
