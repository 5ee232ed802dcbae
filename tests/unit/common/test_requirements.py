"""The locks agree with pyproject.toml, and what makes the environments says what it needs."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from recipe.flowrl.common.project import PROJECT

REQUIREMENTS = PROJECT / "requirements"
METADATA = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]


def lock(name: str) -> dict[str, str]:
    """Canonical name -> version."""
    lines = [line for line in (REQUIREMENTS / name).read_text().splitlines() if line and not line.startswith("#")]
    pins = {canonicalize_name(package): version for package, version in (line.split("==") for line in lines)}
    assert len(pins) == len(lines)
    return pins


def asked(extra: str | None = None) -> list[Requirement]:
    lines = METADATA["dependencies"] if extra is None else METADATA["optional-dependencies"][extra]
    return [Requirement(line) for line in lines]


@pytest.mark.parametrize("name", ["gpu.lock", "cpu.lock"])
def test_a_lock_has_exact_versions_and_names_no_host(name: str) -> None:
    assert all(re.fullmatch(r"[0-9a-z.+]+", version) for version in lock(name).values())
    assert "//" not in (REQUIREMENTS / name).read_text() and "index" not in (REQUIREMENTS / name).read_text()


def test_the_gpu_lock_is_what_the_project_asks_for() -> None:
    """Made anew after a change by the command in its first lines."""
    pins = lock("gpu.lock")
    for requirement in [*asked(), *asked("gpu")]:
        version = pins[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version), f"{requirement}, {version} in gpu.lock"
    assert "flash-attn" not in pins


def test_the_cpu_lock_is_what_the_project_asks_for() -> None:
    pins = lock("cpu.lock")
    for requirement in asked():
        assert requirement.specifier.contains(pins[canonicalize_name(requirement.name)]), requirement


def test_flash_attention_is_an_extra_of_its_own_and_its_build_requirements_are_there_before() -> None:
    assert not any(requirement.name == "flash-attn" for requirement in asked("gpu"))
    assert {requirement.name for requirement in asked("gpu")} >= {"ninja", "psutil", "setuptools", "wheel"}
    assert [requirement.name for requirement in asked("flash-attn")] == ["flash-attn"]


def stand_in(directory: Path, name: str, version: tuple[int, int], main: str = "") -> Path:
    """A Python that says it is of that version, and else is this one."""
    program = directory / name
    program.write_text(
        f"#!{sys.executable}\nimport collections, runpy, sys\n"
        f"class V(collections.namedtuple('V', 'major minor micro level serial')): pass\n"
        f"sys.version_info = V({version[0]}, {version[1]}, 0, 'final', 0)\n"
        f"sys.version = '{version[0]}.{version[1]}.0 x'\n"
        f"{main}\n"
        "sys.argv = sys.argv[1:]\n"
        "if sys.argv[0] == '-c': exec(sys.argv[1])\n"
        "else: runpy.run_path(sys.argv[0], run_name='__main__')\n"
    )
    program.chmod(0o755)
    return program


@pytest.mark.skipif(shutil.which("make") is None, reason="there is no make")
@pytest.mark.parametrize(
    ("there", "taken"),
    [
        ({"python3.11": (3, 11), "python3.12": (3, 12), "python3": (3, 13)}, "python3.11"),
        ({"python3.12": (3, 12), "python3": (3, 13)}, "python3.12"),
        ({"python3": (3, 12)}, "python3"),
        ({"python3.11": (3, 13), "python3": (3, 13)}, "python3"),
    ],
)
def test_make_takes_the_python_that_is_there(there: dict[str, tuple[int, int]], taken: str, tmp_path: Path) -> None:
    for name, version in there.items():
        stand_in(tmp_path, name, version)
    for tool in ("sh", "make"):
        (tmp_path / tool).symlink_to(shutil.which(tool))
    environment = {"PATH": str(tmp_path), "HOME": os.environ["HOME"]}
    command = ["make", "-n", "-B", "venv", "VENV=x"]
    shown = subprocess.run(command, cwd=PROJECT, env=environment, capture_output=True, text=True, check=True).stdout
    assert shown.strip() == f"{taken} requirements/install.py x"


@pytest.mark.parametrize("version", [(3, 10), (3, 13), (3, 14)])
def test_another_python_is_refused_in_one_line_with_the_way_out(version: tuple[int, int], tmp_path: Path) -> None:
    python = stand_in(tmp_path, "python3", version)
    command = [str(python), "requirements/install.py", str(tmp_path / "venv")]
    refused = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True)
    assert refused.returncode == 1 and refused.stderr.count("\n") == 1
    assert f"this is Python {version[0]}.{version[1]}.0" in refused.stderr and "uv python install" in refused.stderr
    assert not (tmp_path / "venv").exists()


@pytest.mark.parametrize("version", [(3, 11), (3, 12)])
def test_a_python_that_makes_no_environments_is_named(version: tuple[int, int], tmp_path: Path) -> None:
    """As Debian's without the package python3-venv."""
    failing = "import subprocess\nsubprocess.run = lambda *a, **k: subprocess.CompletedProcess(a, 1)"
    python = stand_in(tmp_path, "python3", version, failing)
    command = [str(python), "requirements/install.py", str(tmp_path / "venv")]
    refused = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True)
    assert refused.returncode == 1 and "apt-get install python3-venv" in refused.stderr
