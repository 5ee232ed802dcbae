"""Imports run one way. What each package may import stands in one table; imports inside functions count too."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from recipe.flowrl.common.project import PROJECT

ROOT = PROJECT / "recipe" / "flowrl"
ROOT_FILES = {"__init__", "__main__", "advantages", "config", "engine", "main_flowrl", "objective", "partition",
              "rollout_weights", "trainer", "ungraded", "worker"}  # fmt: skip
"""The algorithm and its doors. A file that is neither has a package."""

LAYERS = [
    {"__main__"},
    {"commands"},
    {"main_flowrl"},
    {"rehearsal", "compare", "distribution", "run"},
    {"one_process"},
    {"plan", "preflight", "evaluate", "diversity", "tables", "prepare"},
    {"checkpoint", "models", "tasks", "reporting"},
    {"sandbox"},
    {"common"},
]
"""From the doors down. A package imports packages of lower layers, and within its own what SIDEWAYS names."""

SIDEWAYS = {
    "rehearsal": {"run"},
    "plan": {"preflight"},
    "preflight": {"prepare"},
    "diversity": {"evaluate"},
    "tables": {"diversity"},
    "checkpoint": {"reporting"},
}

ALGORITHM = {
    "config": {"common"},
    "partition": {"config"},
    "objective": {"config"},
    "advantages": {"config", "objective"},
    "engine": {"config", "partition"},
    "rollout_weights": set(),
    "worker": {"advantages", "config", "engine", "objective", "rollout_weights"},
    "ungraded": set(),
    "trainer": {"advantages", "config", "reporting", "ungraded", "worker"},
}
"""The files of the algorithm, and all that each may import of the recipe."""

USES_ALGORITHM = {
    "preflight": {"config"},
    "reporting": {"config"},
    "plan": {"config", "partition"},
    "run": {"config", "trainer", "worker"},
    "distribution": {"config", "partition"},
    "one_process": {"advantages", "config", "partition", "rollout_weights", "worker"},
}
"""Of the algorithm, what a package may import: its options to check them, or the whole to run it."""


def package_of(module: str) -> str:
    return module.removeprefix("recipe.flowrl").lstrip(".").partition(".")[0]


def imports_of(file: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{file}: a relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def edges() -> dict[tuple[str, str], list[str]]:
    """Importing and imported package of the recipe -> the files that do it."""
    found: dict[tuple[str, str], list[str]] = {}
    for file in sorted(ROOT.rglob("*.py")):
        importer = file.relative_to(ROOT).with_suffix("").parts[0]
        for name in imports_of(file):
            if name.startswith("recipe.flowrl.") and package_of(name) != importer:
                found.setdefault((importer, package_of(name)), []).append(str(file.relative_to(ROOT)))
    return found


def allowed(importer: str) -> set[str]:
    if importer in ALGORITHM:
        return ALGORITHM[importer]
    layer = next(number for number, packages in enumerate(LAYERS) if importer in packages)
    below = set().union(*LAYERS[layer + 1 :])
    return below | SIDEWAYS.get(importer, set()) | USES_ALGORITHM.get(importer, set())


def test_every_package_has_its_place() -> None:
    packages = {path.name for path in ROOT.iterdir() if (path / "__init__.py").exists()}
    assert packages == set().union(*LAYERS) - ROOT_FILES, "a new package goes into the table"
    files = {path.stem for path in ROOT.glob("*.py")}
    assert files <= ROOT_FILES and len(files) <= 12


def test_packages_import_what_the_table_allows() -> None:
    wrong = {edge: files for edge, files in edges().items() if edge[1] not in allowed(edge[0])}
    assert not wrong


def test_the_table_allows_nothing_that_nobody_uses() -> None:
    used = edges().keys()
    for table in (SIDEWAYS, ALGORITHM, USES_ALGORITHM):
        assert not {(importer, name) for importer, names in table.items() for name in names} - used


def test_there_is_no_cycle() -> None:
    left = set(edges())
    while leaves := {imported for _, imported in left} - {importer for importer, _ in left}:
        left = {edge for edge in left if edge[1] not in leaves}
    assert not left, "the packages in these imports reach themselves, or are reached from such"


@pytest.mark.parametrize("name", ["arithmetic", "change", "code", "countdown", "math", "modes", "public"])
def test_a_task_knows_no_other_task(name: str) -> None:
    files = (ROOT / "tasks" / name).glob("*.py")
    others = {path.name for path in (ROOT / "tasks").iterdir() if (path / "__init__.py").exists()} - {name}
    assert name not in others and others
    for file in files:
        imported = {
            i.removeprefix("recipe.flowrl.tasks.").partition(".")[0] for i in imports_of(file) if ".tasks." in i
        }
        assert not imported & others, file


def test_the_extension_of_verl_knows_nothing_of_the_recipe() -> None:
    files = list((PROJECT / "verl_ext").rglob("*.py"))
    assert files and not [f for f in files for name in imports_of(f) if name.split(".")[0] == "recipe"]
