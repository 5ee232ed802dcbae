"""The exact test: trains on a task whose answers can be enumerated, and measures the policy against the target."""

import dataclasses
import itertools
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from recipe.flowrl.common.environment import export_environment
from recipe.flowrl.common.errors import UserError
from recipe.flowrl.common.files import write_json
from recipe.flowrl.common.signals import ends_with_its_children
from recipe.flowrl.distribution.setup import Setup, algorithms, compose_run, ensure, overrides
from recipe.flowrl.reporting.console import RunConsole

POINTS_EVERY = {"modes": 10, "endings": 20}
"""Steps between two points of the curve, in mode=objective: a point costs as much as some steps."""


def run_all(setups: Sequence[Setup], mode: str, seeds: Sequence[int], run_dir: Path, extra: list[str]) -> None:
    """Run each setup with each seed, where it hasn't been, and draw the report of all that ``run_dir`` has.

    Args:
        setups: of a single one the results are in ``run_dir`` itself, else in ``run_dir/ALGO``.
        mode: see :func:`run`.
        seeds: of the data, each with a directory ``seed_N``; none: the configuration's, in no directory of its own.
        run_dir: where to.
        extra: overrides of every run.

    Raises:
        UserError: a task or staleness that the mode doesn't have, or as :func:`run` does.
    """
    setup = setups[0]
    if mode != "objective" and setup.staleness:
        raise UserError(f"staleness={setup.staleness} is of mode=objective: in mode={mode} the trainer decides it")
    if mode != "objective" and setup.task != "modes":
        raise UserError(f"task={setup.task} is of mode=objective")
    run_dir = run_dir.absolute()
    with ends_with_its_children(), RunConsole(sys.stdout) as console:
        for seed, setup in itertools.product(seeds or [None], setups):
            directory = run_dir if len(setups) == 1 else run_dir / setup.algo
            if seed is None:
                run(setup, mode, directory, extra, console)
            else:
                run(setup, mode, directory / f"seed_{seed}", [*extra, f"data.seed={seed}"], console)
        from recipe.flowrl.distribution.exact_report import write_report

        console.message(f"report: {write_report(run_dir)}")


def setups_of(algos: Sequence[str], **rest: Any) -> list[Setup]:
    """A setup for each algorithm, or for all of them; bad names are refused before the first run."""
    return [Setup(name, **rest) for name in (algorithms() if list(algos) == ["all"] else algos)]


def run(setup: Setup, mode: str, directory: Path, extra: list[str], console: RunConsole) -> None:
    """One run: train, measure, write ``directory/result.json``; nothing if it is there, from the same configuration.

    Raises:
        UserError: the result there is another configuration's, or the training failed.
    """
    asked = dataclasses.asdict(setup) | {"mode": mode, "overrides": extra}
    path = directory / "result.json"
    if path.exists():
        found = json.loads(path.read_text())
        before = {"task": "modes", "beta": None, "staleness": 0}  # of results that are older than these options
        if {name: found.get(name, before.get(name)) for name in asked} != asked:
            raise UserError(f"{path} is of another configuration: choose another run_dir, or remove it")
        console.message(f"{setup.algo}: done before, {path}")
        return
    config = compose_run(setup, extra)
    export_environment(config)

    from recipe.flowrl.distribution.targets import target_of, tilted

    enumeration = ensure(setup, config, console)
    if mode == "objective":
        points = _objective(setup, config, enumeration, console)
    else:
        points = _stack(setup, directory, extra, config, enumeration)
    own = None if setup.reward == "group_normalized" and setup.task == "modes" else target_of(config, enumeration)
    target, log_z_target = own or tilted(enumeration.reference_log_probs, enumeration.rewards, setup.strength)
    curve = []
    for point in points:
        measures = enumeration.measure(point.log_probs, target, point.log_z if own else None, log_z_target)
        curve.append({"step": point.step, "samples": point.samples, "worst": measures["worst"]})
    result = {
        **asked,
        "own_target": own is not None,
        **measures,
        "target": enumeration.measure(target, target, None, log_z_target),
        "samples": points[-1].samples,
        "curve": curve,
    }
    if setup.task == "modes":
        result |= {"probabilities": _probabilities(points[-1].log_probs, target, enumeration)}
        result |= {"modes": enumeration.mode_rows}
    write_json(path, result)
    worst = ", ".join(f"{name} {'-' if value is None else f'{value:.4f}'}" for name, value in result["worst"].items())
    console.message(f"{setup.algo}: worst prompt: {worst}")


def _probabilities(policy: Any, target: Any, enumeration: Any) -> dict[str, list[list[float]]]:
    tables = {"policy": policy, "target": target, "reference": enumeration.reference_log_probs}
    return {
        name: [[round(value, 7) for value in row] for row in log_probs.exp().tolist()]
        for name, log_probs in tables.items()
    }


def _objective(setup: Setup, config: Any, enumeration: Any, console: RunConsole) -> list[Any]:
    import torch

    from recipe.flowrl.distribution import objective_mode

    torch.set_num_threads(1)  # the matrices are too small for more

    def say(step: int, steps: int) -> None:
        if step % 100 == 0:
            console.message(f"{setup.algo}: step {step}/{steps}")

    with console.phase(f"{setup.algo}: training"):
        return objective_mode.train(config, enumeration, POINTS_EVERY[setup.task], setup.staleness, say)


def _stack(setup: Setup, directory: Path, extra: list[str], config: Any, enumeration: Any) -> list[Any]:
    from recipe.flowrl.config import FlowRLConfig
    from recipe.flowrl.distribution import stack_mode

    run_dir = directory / "run"
    stack_mode.train(run_dir, ["experiment=distribution", f"algo={setup.algo}", *overrides(setup), *extra])
    flowrl = None if config.flowrl is None else FlowRLConfig.from_mapping(dict(config.flowrl))
    return stack_mode.points(run_dir, enumeration, flowrl, config.actor_rollout_ref.rollout.n)
