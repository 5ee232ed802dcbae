"""What the trainer writes while it runs: events for the console and one line of metrics a step."""

import json
import time
from pathlib import Path
from typing import Any

import numpy as np

from recipe.flowrl.reporting.events import EventWriter, append, end_line


class RunRecorder:
    """Writes ``events.jsonl`` and ``metrics.jsonl`` into a run directory; verl calls it as one of its loggers."""

    def __init__(self, run_dir: str | Path) -> None:
        run_dir = Path(run_dir)
        run_dir.mkdir(parents=True, exist_ok=True)
        self.total_steps: int | None = None
        self._events = EventWriter(run_dir / "events.jsonl")
        self._metrics_path = run_dir / "metrics.jsonl"
        end_line(self._metrics_path)

    def phase(self, name: str) -> None:
        """A phase has begun; it lasts until the next one begins or a step ends."""
        self._events.write("phase", name=name)

    def message(self, text: str) -> None:
        """A line for the console."""
        self._events.write("message", text=text)

    def log(self, data: dict[str, Any], step: int) -> None:
        """Append the metrics of ``step``, flat, numbers only. Step 0 is the validation before training."""
        numbers = {name: _number(value) for name, value in data.items()}
        numbers = {name: value for name, value in numbers.items() if value is not None}
        line = json.dumps({"step": step, "time": time.time(), **numbers})
        append(self._metrics_path, line.encode() + b"\n")
        self._events.write("step", step=step, total=self.total_steps, metrics=numbers)


def _number(value: Any) -> float | int | None:
    if isinstance(value, np.generic) or (hasattr(value, "numel") and value.numel() == 1):
        value = value.item()
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None
