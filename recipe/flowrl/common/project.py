"""Where the project's own files are: the one place that counts folders upwards."""

import locale
import os
import sys
from pathlib import Path

if "HOME" not in os.environ:  # as in some containers and services; the configuration and many libraries read it
    found = os.path.expanduser("~")
    os.environ["HOME"] = found if found != "~" else "/"

_UTF8, _NAMES = "PYTHONUTF8", ("utf-8", "utf8")


def in_utf8() -> None:
    """Start this process anew with Python's UTF-8 mode, where the locale's encoding is another.

    Configurations, data and texts are UTF-8; libraries read and write files in the locale's encoding. Python does this
    by itself for LANG=C. What this process starts inherits it.
    """
    if locale.getpreferredencoding(False).lower() not in _NAMES and os.environ.get(_UTF8) != "1":
        os.environ[_UTF8] = "1"
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


PROJECT = Path(__file__).resolve().parents[3]
"""The checkout: what holds ``recipe/``, ``verl_ext/``, ``configs/`` and ``slurm/``."""

CONFIG_DIR = PROJECT / "configs"
"""The Hydra configuration that runs are composed from."""
