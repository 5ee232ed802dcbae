"""Kill the processes of a run, one after the other, and see how it ends and goes on: ``python -m benchmarks.chaos``.

The run saves after each step. It is started, a process of it is killed (SIGKILL) at a moment drawn at random, and it
has to end within a minute with a line that names that process, and to leave nothing. The next start has to continue
after the step that was saved; it is the next to be hit. What the run can do without is killed on the way: it has to go
on. A kill takes one to two minutes.
"""

import argparse
import json
import random
import shutil
import signal
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.machine import PROJECT, describe
from benchmarks.victims import LIMIT_S, RECOVERS, TITLES, Outcome, Victim
from recipe.flowrl.common.files import write_json

STARTING = ("starting Ray", "loading the model", "loading vLLM", "first weight sync")
STEPPING = ("rollout", "log-probs", "update", "checkpoint", "weight sync")
KINDS = [kind for kind in TITLES if kind != "weight receiver"]
"""Of a synchronous run, which has no process of its own for that."""
FROM_THE_START = ("main process", "guardian", "gcs", "raylet", "log monitor", "runtime env agent", "trainer")
"""Kinds that are there while the others are being started."""


@dataclass
class Kill:
    """One kill: what is to be hit and when, and what came of it."""

    kind: str
    phase: str
    delay_s: float
    moment: str = ""
    outcome: Outcome | None = None
    saved_step: int = 0
    resumed_step: int | None = None
    problems: list[str] = field(default_factory=list)


def plan(number: int, seed: int) -> list[Kill]:
    """``number`` kills: all kinds in turn, in an order, in phases and with delays drawn from ``seed``.

    Every fifth falls into a save, and of every fifth those that are there by then into the start.
    """
    draw = random.Random(seed)
    kills: list[Kill] = []
    while len(kills) < number:
        for kind in draw.sample(KINDS, len(KINDS)):
            turn = len(kills) % 5
            phase = draw.choice(STARTING if turn == 1 and kind in FROM_THE_START else STEPPING)
            phase = "checkpoint" if turn == 3 else phase
            longest = 2.0 if phase in STARTING else 0.02 if phase == "checkpoint" else 0.3
            kills.append(Kill(kind, phase, round(draw.uniform(0, longest), 3)))
    return kills[:number]


def carry_out(kill: Kill, victim: Victim) -> bool:
    """Hit ``victim``; returns whether it goes on."""
    victim.wait_for(kill.phase)
    time.sleep(kill.delay_s)
    kill.moment = victim.now()
    deadline = time.monotonic() + 30
    while (process := victim.find(kill.kind)) is None and time.monotonic() < deadline:
        time.sleep(0.05)
    if process is None:
        kill.problems.append("there is no such process")
        return True
    if kill.kind in RECOVERS:
        process.kill()
        victim.wait_for("step", times=3)  # steps end as before
        kill.outcome = Outcome(0.0, None, "the run goes on", [])
        return True
    kill.outcome = victim.kill(process)
    kill.saved_step = victim.saved_step
    kill.problems += problems_of(kill, process.pid)
    return False


def problems_of(kill: Kill, pid: int) -> list[str]:
    """What is wrong with the end of a run; nothing, it is hoped."""
    outcome, problems = kill.outcome, []
    if outcome.status is None or outcome.seconds > LIMIT_S:
        problems.append(f"no end within {LIMIT_S:.0f} s")
    if outcome.status == 0:
        problems.append("exit status 0")
    if f"pid {pid})" not in outcome.message or len(outcome.message.splitlines()) != 1:
        problems.append("no single line that names what died")
    return problems + [f"left: {item}" for item in outcome.left]


@dataclass
class Record:
    """The kills in their order, of which the first ``done`` have been carried out, as they stand in the file ``out``.

    ``wrong_before``: kills that led to a problem and have been carried out again.
    """

    out: Path
    seed: int
    kills: list[Kill]
    done: int = 0
    wrong_before: list[dict[str, Any]] = field(default_factory=list)

    def write(self, done: int) -> None:
        """Write it to its file; ``done`` kills have been carried out."""
        self.done = done
        content = {"seed": self.seed, "machine": describe(), "wrong_before": self.wrong_before}
        content["kills"] = [asdict(kill) for kill in self.kills[:done]]
        content["to_do"] = [{"kind": k.kind, "phase": k.phase, "delay_s": k.delay_s} for k in self.kills[done:]]
        write_json(self.out, content, indent=1)


def read(out: Path) -> Record:
    """What is in ``out``, to be gone on with. What led to a problem is to be carried out once more, after the rest."""
    written = json.loads(out.read_text())
    wrong = [kill for kill in written["kills"] if kill["problems"]]
    right = [
        Kill(**kill | {"outcome": kill["outcome"] and Outcome(**kill["outcome"])})
        for kill in written["kills"]
        if not kill["problems"]
    ]
    to_do = [Kill(kill["kind"], kill["phase"], kill["delay_s"]) for kill in [*written["to_do"], *wrong]]
    return Record(out, written["seed"], right + to_do, len(right), written["wrong_before"] + wrong)


def run(record: Record, run_dir: Path, console: Console) -> None:
    """Carry out what is left to do on one run, and write what came of it after each kill."""
    kills, done = record.kills, record.done
    victim, previous = None, kills[done - 1] if done else None
    if previous is not None and (previous.kind in RECOVERS or previous.resumed_step is not None):
        previous = None  # there is nothing to check, or it has been
    try:
        for number, kill in enumerate(kills[done:], done + 1):
            victim = victim or Victim(run_dir)
            console.print(f"{number}/{len(kills)}: {kill.kind}, {kill.delay_s} s into {kill.phase!r} ...")
            try:
                if previous is not None:
                    check_resume(previous, victim)
                    record.write(number - 1)
                    previous = None
                goes_on = carry_out(kill, victim)
                if victim.first_step not in (None, victim.resumed_step + 1):
                    kill.problems.append(f"the first step was {victim.first_step}, not {victim.resumed_step + 1}")
            except RuntimeError as error:
                kill.problems.append(str(error)[:300])
                goes_on = False
            console.print(f"    {kill.outcome.message if kill.outcome else ''} {'; '.join(kill.problems)}".rstrip())
            if not goes_on:
                victim.end()
                victim, previous = None, kill
            record.write(number)
        if previous is not None:
            victim = Victim(run_dir)
            check_resume(previous, victim)
            record.write(len(kills))
    finally:
        if victim is not None:
            victim.end()


def check_resume(kill: Kill, victim: Victim) -> None:
    """Whether ``victim``, the launch after ``kill``, goes on where it should."""
    victim.wait_for("starting Ray")  # it has said so by then
    kill.resumed_step = victim.resumed_step
    if kill.resumed_step != kill.saved_step:
        kill.problems.append(f"went on after step {kill.resumed_step}, not {kill.saved_step}")


def table(kills: list[Kill]) -> Table:
    """A row a kill."""
    rows = Table("killed", "in phase", "ended after", "status", "saved", "resumed", "message or problem")
    for kill in kills:
        outcome = kill.outcome
        ended = outcome is not None and outcome.status is not None
        rows.add_row(
            kill.kind,
            kill.moment or kill.phase,
            f"{outcome.seconds:.1f} s" if ended else "-",
            str(outcome.status) if ended else "-",
            str(kill.saved_step) if ended else "-",
            "-" if kill.resumed_step is None else str(kill.resumed_step),
            "PROBLEM: " + "; ".join(kill.problems) if kill.problems else outcome.message if outcome else "",
        )
    return rows


def main(arguments: list[str]) -> int:
    """Returns the exit status: 1 if a kill led to something else than it should."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.chaos", description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--run-dir", type=Path, default=PROJECT / "outputs" / "chaos", help="made anew")
    parser.add_argument("--out", type=Path, default=PROJECT / "benchmarks" / "chaos.json")
    parser.add_argument(
        "--resume", action="store_true", help="go on with OUT: the rest of its plan, then again what led to a problem"
    )
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the run is ended
    console = Console()
    if options.resume:
        record = read(options.out)
    else:
        record = Record(options.out, options.seed, plan(options.kills, options.seed))
        shutil.rmtree(options.run_dir, ignore_errors=True)
    console.print(f"seed {record.seed}, {len(record.kills)} kills, {record.done} of them carried out")
    run(record, options.run_dir, console)
    console.print(table(record.kills))
    return 1 if any(kill.problems for kill in record.kills) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
