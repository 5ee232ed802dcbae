"""Kill the processes of a run, one after the other, and see how it ends and goes on: ``python -m benchmarks.chaos``.

The run saves after each step. It is started, a process of it is killed (SIGKILL) at a moment drawn at random, and it
has to end within a minute with a line that names that process, and to leave nothing. The next start has to continue
after the step that was saved; it is the next to be hit. What the run can do without is killed on the way: it has to go
on. A kill takes one to two minutes.
"""

import argparse
import random
import shutil
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.machine import PROJECT, describe
from benchmarks.victims import LIMIT_S, RECOVERS, TITLES, Outcome, Victim
from recipe.flowrl.files import write_json

STARTING = ("starting Ray", "loading the model", "loading vLLM", "first weight sync")
STEPPING = ("rollout", "log-probs", "update", "checkpoint", "weight sync")
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

    Every fifth falls into a save, every fifth into the start.
    """
    draw = random.Random(seed)
    kills: list[Kill] = []
    while len(kills) < number:
        for kind in draw.sample(list(TITLES), len(TITLES)):
            turn = len(kills) % 5
            phase = draw.choice(STARTING if turn == 1 and kind in FROM_THE_START else STEPPING)
            phase = "checkpoint" if turn == 3 else phase
            longest = 2.0 if phase in STARTING else 0.02 if phase == "checkpoint" else 0.3
            kills.append(Kill(kind, phase, round(draw.uniform(0, longest), 3)))
    return kills[:number]


def carry_out(kill: Kill, victim: Victim) -> bool:
    """Hit ``victim``; returns whether it goes on."""
    victim.wait_for(kill.phase, times=1 if kill.phase in STARTING else 2)
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


def run(kills: list[Kill], run_dir: Path, console: Console, out: Path, seed: int) -> None:
    """Carry out all kills on one run, and write what came of it after each."""
    victim, previous = None, None
    try:
        for number, kill in enumerate(kills, 1):
            victim = victim or Victim(run_dir)
            console.print(f"{number}/{len(kills)}: {kill.kind}, {kill.delay_s} s into {kill.phase!r} ...")
            try:
                goes_on = carry_out(kill, victim)
            except RuntimeError as error:
                kill.problems.append(str(error)[:300])
                goes_on = False
            if previous is not None:
                previous.resumed_step = victim.resumed_step
                if previous.resumed_step != previous.saved_step:
                    previous.problems.append(f"went on after step {previous.resumed_step}, not {previous.saved_step}")
                previous = None
            console.print(f"    {kill.outcome.message if kill.outcome else ''} {'; '.join(kill.problems)}".rstrip())
            if not goes_on:
                victim.end()
                victim, previous = None, kill
            write_json(
                out, {"seed": seed, "machine": describe(), "kills": [asdict(k) for k in kills[:number]]}, indent=1
            )
    finally:
        if victim is not None:
            victim.end()


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
    options = parser.parse_args(arguments)
    console = Console()
    console.print(f"seed {options.seed}, {options.kills} kills")
    shutil.rmtree(options.run_dir, ignore_errors=True)
    kills = plan(options.kills, options.seed)
    run(kills, options.run_dir, console, options.out, options.seed)
    console.print(table(kills))
    return 1 if any(kill.problems for kill in kills) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
