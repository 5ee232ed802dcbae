"""The environment in which TRL runs: pinned, and none of the project's."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

from verl_ext.files import write_text

REQUIREMENTS = Path(__file__).with_name("requirements.txt")


def ensure(directory: Path) -> Path:
    """The environment's Python, made in ``directory`` if it isn't there, or of other requirements.

    Raises:
        subprocess.CalledProcessError: pip failed.
    """
    python, made_of = directory / "bin" / "python", directory / "requirements.sha256"
    wanted = hashlib.sha256(REQUIREMENTS.read_bytes()).hexdigest()
    if not made_of.exists() or made_of.read_text() != wanted:
        subprocess.run([sys.executable, "-m", "venv", "--clear", directory], check=True)
        pip = [python, "-m", "pip", "install", "--quiet", "--no-deps", "--disable-pip-version-check"]
        subprocess.run([*pip, "-r", REQUIREMENTS], check=True, env=os.environ)
        write_text(made_of, wanted)
    return python
