"""What no CPU can show, on one GPU in ten minutes: ``python -m benchmarks.gpu_acceptance``.

A handful of launches of a few steps on models made on the spot in the shape of Qwen2.5-0.5B and 1.5B, as
``cluster=1x8`` has them but on one GPU, with parameters and optimizer offloaded: nothing is downloaded. From their
records come checks, each with a value, a bound and a verdict, written to ``gpu_acceptance.json`` after each action and
shown in ``gpu_acceptance.html``. Exit status 0: no check failed; 1: one did.

``--device cpu`` does the same with tiny models and marks what means nothing there.
"""

import argparse
import math
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import acceptance_page
from benchmarks.acceptance_checks import (
    FAIL,
    NOT_ASKED_FOR,
    NOT_RUN,
    OUT_OF_TIME,
    PASS,
    STILL_TO_COME,
    Result,
    all_checks,
    judge,
)
from benchmarks.acceptance_runs import (
    Evidence,
    GpuMemoryRecorder,
    carry_out,
    carry_out_pair,
    drop_weights,
    export,
    gpu_facts,
    make_models,
)
from benchmarks.children import PROJECT, ChildError
from benchmarks.launches import END_OF_RUN_S
from benchmarks.machine import describe
from recipe.flowrl.common.errors import UserError
from recipe.flowrl.common.files import write_json
from recipe.flowrl.common.progress import short_duration
from recipe.flowrl.preflight.accelerator import flash_attention_fault
from recipe.flowrl.reporting.console import RunConsole

BUDGET_S = 600.0


@dataclass(frozen=True)
class Action:
    """Something done once, whose outcome several checks look at; seconds."""

    title: str
    limit_s: float
    expected_s: float
    do: Callable[..., None]
    after: tuple[str, ...] = ("models",)


ACTIONS: Mapping[str, Action] = {
    "models": Action("making the models", 90, 30, make_models, after=()),
    "fused": Action("FlowRL, fused, offloaded", 240, 100, partial(carry_out, name="fused")),
    "resumed": Action("the same, resumed", 180, 70, partial(carry_out, name="resumed"), after=("fused",)),
    "export": Action("export of its checkpoint", 90, 20, export, after=("fused",)),
    "grpo": Action("GRPO with a KL term", 180, 75, partial(carry_out, name="grpo")),
    "large": Action("FlowRL, 1.5B", 240, 90, partial(carry_out, name="large")),
    "unfused": Action("FlowRL, not fused", 180, 75, partial(carry_out, name="unfused")),
    "pair": Action("two runs at once", 240, 80, carry_out_pair),
}
"""What most depends on a GPU comes first: the budget may end before they do."""


@dataclass
class Acceptance:
    """The actions carried out one after the other, and what is written down of them.

    ``slowness``: factor on all limits. ``now``: a clock in seconds.
    """

    evidence: Evidence
    out: Path
    machine: dict[str, Any]
    budget_s: float = BUDGET_S
    slowness: float = 1.0
    only: tuple[str, ...] = tuple(ACTIONS)
    now: Callable[[], float] = time.time
    skipped: dict[str, str] = field(default_factory=dict)
    spans: dict[str, tuple[float, float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._started = self.now()
        self._last_moment_s = self.budget_s - END_OF_RUN_S  # a run that is cut short takes so long to end
        limits = {name: action.limit_s * self.slowness for name, action in ACTIONS.items()}
        self._checks = all_checks(limits, {name: action.title for name, action in ACTIONS.items()})
        self._judged: dict[str, Result] = {}
        self.skipped |= {name: NOT_ASKED_FOR for name in ACTIONS if name not in _with_earlier(self.only)}

    @property
    def elapsed_s(self) -> float:
        """Since the beginning."""
        return self.now() - self._started

    def run(self, console: RunConsole, actions: Mapping[str, Action] | None = None) -> list[Result]:
        """Carry out what is to be; a failure stops only what builds on it. Returns all results."""
        try:
            for name, action in (actions or ACTIONS).items():
                if name not in self.skipped:
                    self._say_progress(console)
                    self._carry_out(name, action, console)
                    self.write()
        finally:
            acceptance_page.write(self.out / "gpu_acceptance.html", self.write())
        return self.results()

    def _carry_out(self, name: str, action: Action, console: RunConsole) -> None:
        unmet = [earlier for earlier in action.after if earlier not in self.evidence.seconds]
        left = self._last_moment_s - self.elapsed_s
        if unmet or left <= 0:
            self.skipped[name] = self.skipped.get(unmet[0], f"{unmet[0]} failed") if unmet else OUT_OF_TIME
            console.message(f"{action.title}: not run: {self.skipped[name]}")
            return
        begin = self.now()
        try:
            with console.phase(action.title):
                action.do(self.evidence, limit_s=min(action.limit_s * self.slowness, left))
        except (ChildError, UserError, OSError) as error:
            if self.elapsed_s >= self._last_moment_s:
                self.skipped[name] = OUT_OF_TIME
            else:
                self.evidence.failures[name] = in_one_line(error)
            console.error(f"{action.title}: {in_one_line(error)}")
        else:
            self.evidence.seconds[name] = self.now() - begin
        self.spans[name] = (begin, self.now())

    def _say_progress(self, console: RunConsole) -> None:
        """What is done, and when the rest will be, if it is as fast against expectation as what went before."""
        done = {name: ACTIONS[name].expected_s for name in self.spans}
        left = sum(a.expected_s for name, a in ACTIONS.items() if name not in done and name not in self.skipped)
        pace = self.elapsed_s / sum(done.values()) if done else self.slowness
        eta = min(left * pace, max(0.0, self.budget_s - self.elapsed_s))
        number = len(ACTIONS) - sum(name in self.skipped for name in ACTIONS)
        console.message(
            f"{len(done)}/{number} actions, {short_duration(self.elapsed_s)} of {short_duration(self.budget_s)}, "
            f"ETA {short_duration(eta)}"
        )

    def results(self) -> list[Result]:
        """Of every check; those still to come are not run."""
        for check in self._checks:
            if check.name not in self._judged:
                result = judge(check, self.evidence, self.skipped)
                if result is not None:
                    self._judged[check.name] = result
        return [
            self._judged.get(check.name) or Result(check.name, check.title, check.bound, check.unit, why=STILL_TO_COME)
            for check in self._checks
        ]

    def write(self) -> dict[str, Any]:
        """Write the JSON file. Returns what is in it."""
        results = self.results()
        counts = Counter(result.verdict for result in results)
        record = {
            "benchmark": "gpu_acceptance",
            "device": self.evidence.device,
            "machine": self.machine,
            "budget_s": self.budget_s,
            "elapsed_s": self.elapsed_s,
            "summary": {verdict: counts[verdict] for verdict in (PASS, FAIL, NOT_RUN)},
            "checks": [asdict(result) for result in results],
            "spans": self.spans,
            "runs": {
                name: {"overrides": self.evidence.overrides(name), "steps": _as_json(steps)}
                for name, steps in self.evidence.steps.items()
            },
            "gpu_memory": list(self.evidence.gpu_memory),
        }
        write_json(self.out / "gpu_acceptance.json", record, indent=1)
        return record


def _as_json(steps: Mapping[int, Mapping[str, float]]) -> dict[str, dict[str, float | None]]:
    """JSON has no nan and no infinity: they become null."""
    return {
        str(step): {name: value if math.isfinite(value) else None for name, value in metrics.items()}
        for step, metrics in steps.items()
    }


def _with_earlier(only: tuple[str, ...]) -> set[str]:
    """These actions and what they build on."""
    wanted = set(only)
    for name in reversed(ACTIONS):
        if name in wanted:
            wanted |= set(ACTIONS[name].after)
    return wanted


def in_one_line(error: BaseException) -> str:
    """The last line of the message that says what was wrong, at most 300 characters."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return next((line for line in reversed(lines) if line.startswith("error:")), lines[-1])[:300]


def main(arguments: list[str]) -> int:
    """Returns the exit status."""
    options = _options(arguments)
    work = options.out / "work"
    evidence = Evidence(options.device, work)
    machine = describe() | {"gpu": None}
    recorder: Any = nullcontext()
    if options.device == "cuda":
        try:
            machine["gpu"] = gpu_facts()
        except ChildError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        evidence.gpu_bytes = machine["gpu"]["memory_bytes"]
        machine["gpu"]["without_flash_attention"] = flash_attention_fault()
        recorder = GpuMemoryRecorder(evidence.gpu_memory)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what was started is ended
    shutil.rmtree(work, ignore_errors=True)
    evidence.models.mkdir(parents=True)
    acceptance = Acceptance(
        evidence, options.out, machine, options.budget_s, options.slowness, tuple(options.only or ACTIONS)
    )
    try:
        with recorder, RunConsole(sys.stdout) as console:
            results = acceptance.run(console)
    finally:
        drop_weights(work)
    for result in results:
        value = "" if result.value is None else f"{result.value:.4g} {result.unit}".strip()
        print(f"{result.verdict:8}{result.title}  {value}  ({result.bound})  {result.why}".rstrip())
    print(f"{options.out / 'gpu_acceptance.html'}")
    return 1 if any(result.verdict == FAIL for result in results) else 0


def _options(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_acceptance", description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: tiny models, no GPU needed")
    parser.add_argument("--only", nargs="+", choices=tuple(ACTIONS), help="these actions and what they build on")
    parser.add_argument(
        "--budget-s", type=float, default=BUDGET_S, help="seconds; what they don't suffice for isn't run"
    )
    parser.add_argument("--slowness", type=float, default=1.0, help="factor on the limit of each action")
    parser.add_argument("--out", type=Path, default=PROJECT / "outputs" / "gpu_acceptance", help="directory")
    options = parser.parse_args(arguments)
    if not (options.budget_s > END_OF_RUN_S and options.slowness > 0):  # nan is neither
        parser.error(f"--budget-s: more than {END_OF_RUN_S}; --slowness: more than 0")
    options.out = options.out.absolute()
    return options


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
