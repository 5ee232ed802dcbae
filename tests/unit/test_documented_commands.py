"""Every command line of the README and the docs is one that the code takes."""

import importlib.util
import os
import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from test_configs import composed, options

from recipe.flowrl.evaluate.options import parse as parse_evaluation

PROJECT = Path(__file__).resolve().parents[2]
PAGES = [PROJECT / "README.md", *sorted((PROJECT / "docs").glob("*.md"))]
STARTS = re.compile(
    r"(?:[A-Z_]+=\S+ )*(?:python -m (?P<module>recipe[\w.]+)|(?P<script>recipe/flowrl/run_\S+\.sh))\b(?P<rest>.*)"
)
PLACEHOLDERS = ("...", "…", "[any", "Hydra", "override]", "$")


def commands() -> list[tuple[str, str, str]]:
    """Page, module or script, and arguments of each command, in fenced blocks and between backquotes."""
    found = []
    for page in PAGES:
        text = page.read_text()
        fences = re.findall(r"```bash\n(.*?)```", text, re.S)
        lines = [line.split("  #")[0].strip() for block in fences for line in block.replace("\\\n", " ").splitlines()]
        inline = re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", text, flags=re.S))
        for line in [*lines, *inline]:
            if start := STARTS.match(line):
                found.append((page.name, start["module"] or start["script"], start["rest"].strip()))
    return sorted(set(found))


def arguments(text: str) -> list[str]:
    """Without what stands for something that the reader fills in."""
    return [word for word in shlex.split(text) if not any(part in word for part in PLACEHOLDERS)]


def _composes(words: list[str]) -> None:
    overrides = [word for word in words if "=" in word and not word.startswith("gpu=")]
    OmegaConf.resolve(composed(*overrides, "trainer.experiment_name=x"))


def _knows_keys(package: str) -> Callable[[list[str]], None]:
    """A command whose words are KEY=VALUE, with keys that its package names."""

    def check(words: list[str]) -> None:
        source = "".join(path.read_text() for path in (PROJECT / "recipe" / "flowrl" / package).glob("*.py"))
        for key in (word.split("=")[0] for word in words if re.match(r"[a-z_]+=", word)):
            assert re.search(rf"\b{key}\b", source), key

    return check


def _evaluates(words: list[str]) -> None:
    if not words:  # its name, in a sentence
        return
    left_out = [] if any(word.startswith("model=") for word in words) else ["model=MODEL"]
    # contests= names a directory that must be there.
    parse_evaluation([*(word.replace("=STANDINGS", f"={PROJECT}") for word in words), *left_out])


def _flags(words: list[str], module: str) -> None:
    source = Path(importlib.util.find_spec(module).origin).read_text()
    for flag in (word for word in words if word.startswith("--")):
        assert f'"{flag}"' in source, flag


CHECKS: dict[str, Callable[[list[str]], object]] = {
    "recipe.flowrl.main_flowrl": _composes,
    "recipe.flowrl.submit": _composes,
    "recipe.flowrl.plan": _composes,
    "recipe.flowrl.doctor": _composes,
    "recipe.flowrl.evaluate": _evaluates,
    "recipe.flowrl.compare": _knows_keys("compare"),
    "recipe.flowrl.distribution": _knows_keys("distribution"),
    "recipe.flowrl.diversity": _knows_keys("diversity"),
    "recipe.flowrl.tables": _knows_keys("tables"),
}


@pytest.mark.parametrize(("page", "program", "rest"), commands())
def test_a_documented_command(page: str, program: str, rest: str) -> None:
    words = arguments(rest)
    if program.endswith(".sh"):
        assert os.access(PROJECT / program, os.X_OK)
        _composes(words)
    elif program in CHECKS:
        CHECKS[program](words)
    else:
        _flags(words, program)
    if not program.endswith(".sh"):
        assert importlib.util.find_spec(f"{program}.__main__" if program in PACKAGES else program), "nothing to run"


PACKAGES = {program for _, program, _ in commands() if (PROJECT / program.replace(".", "/")).is_dir()}


def test_commands_are_found() -> None:
    modules = {program for _, program, _ in commands()}
    assert {"recipe.flowrl.main_flowrl", "recipe.flowrl.evaluate", "recipe.flowrl.export"} <= modules
    assert len(commands()) > 30


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
