"""A request to stop at the end of a step. Standard library only."""

import time
from pathlib import Path


class StopRequested(Exception):
    """A run has stopped where it was asked to, and what it had done is saved. The message says so."""


class StopRequest:
    """A file that asks a run to stop, and a moment before which it has to.

    Args:
        file: the run stops once it exists; on a file system that the asking and the asked share. None: no file.
        deadline: seconds since the epoch by which the last step must be saved. None: none.
    """

    def __init__(self, file: str | Path | None = None, deadline: float | None = None) -> None:
        self.file = Path(file) if file is not None else None
        self.deadline = deadline
        self._longest_step_s = 0.0
        self._step_began: float | None = None

    def step_begins(self) -> None:
        """Call at the start of each step: its time is how the next one is judged."""
        now = time.monotonic()
        if self._step_began is not None:
            self._longest_step_s = max(self._longest_step_s, now - self._step_began)
        self._step_began = now

    def honour(self) -> None:
        """Remove the file: the next run in the same place isn't asked to stop."""
        if self.file is not None:
            self.file.unlink(missing_ok=True)

    def reason(self) -> str | None:
        """Why no further step is to begin after the one that is under way, or None."""
        if self.file is not None and self.file.exists():
            return f"{self.file} asked for it"
        if self.deadline is None or self._step_began is None:
            return None
        # The longest, not the mean: a validation or a save may fall into the next step.
        needed = max(self._longest_step_s, time.monotonic() - self._step_began)
        left = self.deadline - time.time()
        if needed > left:
            return f"a step of {needed:.0f} s doesn't fit into the {max(left, 0):.0f} s before the deadline"
        return None
