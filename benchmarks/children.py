"""Measurements in processes of their own: each starts with nothing imported and nothing allocated."""

import importlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from verl_ext.files import open_own, write_json

PROJECT = Path(__file__).resolve().parents[1]


class ChildError(RuntimeError):
    """A measuring process failed; the message ends with the end of its output."""


def call(module: str, argument: Any, environment: Mapping[str, str], timeout_s: float = 600) -> Any:
    """Run ``benchmarks.<module>.measure(argument)`` in a fresh interpreter and return its result, both as JSON.

    Raises:
        ChildError: it raised, or took longer than ``timeout_s`` seconds.
    """
    with tempfile.TemporaryDirectory(prefix="flowrl_bench_") as directory:
        given, result, log = (Path(directory) / name for name in ("argument.json", "result.json", "log"))
        write_json(given, argument)
        command = [sys.executable, "-m", "benchmarks.children", module, str(given), str(result)]
        with os.fdopen(open_own(log, 0), "w") as output:
            process = subprocess.Popen(
                command, cwd=PROJECT, env=os.environ | environment, stdout=output, stderr=subprocess.STDOUT
            )
            try:
                status: int | str = process.wait(timeout_s)
            except subprocess.TimeoutExpired:
                status = f"no end after {timeout_s:.0f} s"
            finally:
                process.kill()
                process.wait()
        if status != 0:
            raise ChildError(f"benchmarks.{module}: {status}\n{log.read_text(errors='replace')[-3000:]}")
        return json.loads(result.read_text())


def main() -> None:
    """``python -m benchmarks.children MODULE ARGUMENT_FILE RESULT_FILE``."""
    module, given, result = sys.argv[1:]
    measured = importlib.import_module(f"benchmarks.{module}").measure(json.loads(Path(given).read_text()))
    write_json(Path(result), measured)


if __name__ == "__main__":
    main()
