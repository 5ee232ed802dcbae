"""Runs the exact test: ``python -m recipe.flowrl.distribution algo=NAME mode=objective|stack run_dir=DIR``.

``algo`` may be several names with commas, or ``all``: then each has ``DIR/NAME/result.json``, and a run that is there
is not repeated. ``seeds=0,1,2`` runs each several times, in ``DIR/NAME/seed_0`` and so on. Either way
``DIR/report.html`` shows what ``DIR`` has. ``reward=group_normalized`` takes FlowRL as published (beta 15, normalised
rewards) instead of with the raw reward. Anything else is an override for Hydra.
"""

import itertools
import json
import os
import sys
from pathlib import Path
from typing import Any

from recipe.flowrl.data.modes import LENGTH
from recipe.flowrl.distribution.setup import TEMPERATURE, algorithms, compose_run, overrides
from recipe.flowrl.errors import UserError, exit_status_of
from recipe.flowrl.files import write_json
from recipe.flowrl.reporting.console import RunConsole
from recipe.flowrl.signals import ends_with_its_children

MODES = ("objective", "stack")
POINTS_EVERY = 10
"""Steps between two points of the curve, in mode=objective."""


def main(arguments: list[str]) -> int:
    """Returns the exit status: 0, 1 after a failure, 2 for bad input."""
    try:
        own, extra = _parse(arguments)
        names = algorithms() if own["algo"] == "all" else own["algo"].split(",")
        seeds = [None] if own["seeds"] is None else _numbers(own["seeds"])
        for name in names:  # bad names are refused before the first run
            overrides(name, own["reward"])
        run_dir = Path(own["run_dir"]).absolute()
        with ends_with_its_children(), RunConsole(sys.stdout) as console:
            for seed, name in itertools.product(seeds, names):
                directory = run_dir if own["algo"] == name else run_dir / name
                if seed is None:
                    run(name, own["mode"], own["reward"], directory, extra, console)
                else:
                    seeded = [*extra, f"data.seed={seed}"]
                    run(name, own["mode"], own["reward"], directory / f"seed_{seed}", seeded, console)
            from recipe.flowrl.distribution.report import write_report

            console.message(f"report: {write_report(run_dir)}")
    except BaseException as error:
        return exit_status_of(error)
    return 0


def run(algo: str, mode: str, reward: str, directory: Path, extra: list[str], console: RunConsole) -> None:
    """One run: train, measure, write ``directory/result.json``; nothing if it is there, from the same configuration.

    Raises:
        UserError: the result there is another configuration's, or the training failed.
    """
    asked = {"algo": algo, "mode": mode, "reward": reward, "overrides": extra}
    path = directory / "result.json"
    if path.exists():
        found = json.loads(path.read_text())
        if {name: found.get(name) for name in asked} != asked:
            raise UserError(f"{path} is of another configuration: choose another run_dir, or remove it")
        console.message(f"{algo}: done before, {path}")
        return
    config = compose_run(algo, reward, extra)
    environment = config.ray_kwargs.ray_init.runtime_env.env_vars
    os.environ.update({name: str(value) for name, value in environment.items()})  # before verl is imported

    from recipe.flowrl.distribution.exact import Enumeration
    from recipe.flowrl.prepare import make

    enumeration = Enumeration(make("enumerable_qwen2", Path(config.cache_dir), console))
    if mode == "objective":
        points = _objective(algo, config, enumeration, console)
    else:
        points = _stack(algo, reward, directory, extra, config, enumeration)
    curve = []
    scale = 1 if config.flowrl is None or config.flowrl.length_normalize else LENGTH
    for point in points:
        log_z = None if point.log_z is None else point.log_z / scale
        measures = enumeration.measure(point.log_probs, TEMPERATURE, log_z)
        curve.append({"step": point.step, "samples": point.samples, "worst": measures["worst"]})
    target, _ = enumeration.target(TEMPERATURE)
    result = {
        **asked,
        **measures,
        "samples": points[-1].samples,
        "curve": curve,
        "probabilities": {
            name: [[round(value, 7) for value in row] for row in log_probs.exp().tolist()]
            for name, log_probs in {
                "policy": points[-1].log_probs,
                "target": target,
                "reference": enumeration.reference_log_probs,
            }.items()
        },
        "modes": enumeration.mode_rows,
    }
    write_json(path, result)
    worst = ", ".join(f"{name} {'-' if value is None else f'{value:.4f}'}" for name, value in result["worst"].items())
    console.message(f"{algo}: worst prompt: {worst}")


def _objective(algo: str, config: Any, enumeration: Any, console: RunConsole) -> list[Any]:
    import torch

    from recipe.flowrl.distribution import objective_mode

    torch.set_num_threads(1)  # the matrices are too small for more

    def say(step: int, steps: int) -> None:
        if step % 100 == 0:
            console.message(f"{algo}: step {step}/{steps}")

    with console.phase(f"{algo}: training"):
        return objective_mode.train(config, enumeration, POINTS_EVERY, say)


def _stack(algo: str, reward: str, directory: Path, extra: list[str], config: Any, enumeration: Any) -> list[Any]:
    from recipe.flowrl.config import FlowRLConfig
    from recipe.flowrl.distribution import stack_mode

    run_dir = directory / "run"
    stack_mode.train(run_dir, ["experiment=distribution", f"algo={algo}", *overrides(algo, reward), *extra])
    flowrl = None if config.flowrl is None else FlowRLConfig.from_mapping(dict(config.flowrl))
    return stack_mode.points(run_dir, enumeration, flowrl, config.actor_rollout_ref.rollout.n)


def _numbers(text: str) -> list[int]:
    try:
        return [int(number) for number in text.split(",")]
    except ValueError:
        raise UserError(f"seeds={text}: expected whole numbers with commas between, for example seeds=0,1,2") from None


def _parse(arguments: list[str]) -> tuple[dict[str, Any], list[str]]:
    """Our own options and the rest.

    Raises:
        UserError: something is missing or wrong.
    """
    own = {"algo": None, "mode": "objective", "run_dir": None, "reward": "raw", "seeds": None}
    extra = []
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if not equals:
            raise UserError(f"{argument!r}: expected KEY=VALUE, for example algo=flowrl")
        if name in own:
            own[name] = value
        else:
            extra.append(argument)
    for name in ("algo", "run_dir"):
        if not own[name]:
            raise UserError(f"{name}=... is missing; for example algo=flowrl run_dir=outputs/distribution")
    if own["mode"] not in MODES:
        raise UserError(f"mode={own['mode']}: unknown; there are {' and '.join(MODES)}")
    return own, extra


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
