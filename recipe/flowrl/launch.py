"""From a checked configuration to a finished run: redirect, prepare, train, report, and leave no process behind."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from omegaconf import DictConfig, OmegaConf, open_dict

from recipe.flowrl import preflight, prepare
from recipe.flowrl.errors import Terminated
from recipe.flowrl.reporting.console import RunConsole
from recipe.flowrl.reporting.events import FIRST_PHASE, EventWriter
from recipe.flowrl.run_dir import next_log, recorded_launch, resume_step, save_config, set_aside_records
from verl_ext.processes import adopt_orphans, end_descendants

SEEDED_ROLLOUTS = "verl_ext.seeded_rollout.SeededAgentLoopManager"


def launch(config: DictConfig) -> None:
    """Run what ``config`` says, from preparing its inputs to the report.

    Raises:
        UserError: bad input that shows only once the inputs are there.
        Terminated: a SIGTERM arrived; KeyboardInterrupt for SIGINT. By then no process of the run is left.
    """
    run_dir = Path(config.run_dir).absolute()
    with open_dict(config):
        config.run_dir = str(run_dir)
        if config.deterministic:
            config.actor_rollout_ref.rollout.agent.agent_loop_manager_class = SEEDED_ROLLOUTS
    OmegaConf.resolve(config)
    # Before verl is imported, here and in what Ray starts.
    environment = OmegaConf.select(config, "ray_kwargs.ray_init.runtime_env.env_vars") or {}
    os.environ.update({name: str(value) for name, value in environment.items()})

    adopt_orphans()
    sigterm = Sigterm()
    sigterm.handle()
    log_path = next_log(run_dir)
    try:
        with sigterm.told_apart(), output_into(log_path) as terminal, RunConsole(terminal) as console:
            console.message(f"run directory: {run_dir}")
            console.message(f"log of verl, Ray and vLLM: {log_path}")
            if not _already_finished(config, console):
                _prepare(config, console)
                _train(config, run_dir, console, sigterm)
    except BaseException as error:
        error.log_path = log_path
        raise
    finally:
        for signum in (signal.SIGINT, signal.SIGTERM):  # the end is under way
            signal.signal(signum, signal.SIG_IGN)
        end_descendants()


def _already_finished(config: DictConfig, console: RunConsole) -> bool:
    done, total = resume_step(config), config.trainer.total_training_steps
    finished = total is not None and done >= total
    if finished:
        console.message(
            f"this run has already finished its {total} steps (report: {config.run_dir}/report.html). To go on: more "
            "trainer.total_training_steps; to start anew: another run_dir, or trainer.resume_mode=disable"
        )
    return finished


def _prepare(config: DictConfig, console: RunConsole) -> None:
    """Make the inputs that are missing, then check them all."""
    prepare.ensure(config, console)
    with console.phase("checking data, model and reward"):
        warnings = preflight.check_files(config)
    for warning in warnings:
        console.message(f"warning: {warning}")


def _train(config: DictConfig, run_dir: Path, console: RunConsole, sigterm: "Sigterm") -> None:
    step = resume_step(config)
    if step:
        console.message(f"continuing after step {step}")
    elif superseded := set_aside_records(run_dir):
        console.message(f"starting from scratch; records of the earlier run are now in {superseded}")
    save_config(config, run_dir)

    events = run_dir / "events.jsonl"
    with recorded_launch(config, run_dir), sigterm.told_apart(), console.following(events):
        EventWriter(events).write("phase", name=FIRST_PHASE)
        _run_verl(config, sigterm)

    from recipe.flowrl.reporting.report import write_report  # seconds to import, not needed until now

    with console.phase("writing the report"):
        report = write_report(run_dir)
    console.message(f"report: {report}")


def _run_verl(config: DictConfig, sigterm: "Sigterm") -> None:
    import ray
    from verl.trainer.main_ppo import run_ppo
    from verl.trainer.ppo.utils import need_critic, need_reference_policy
    from verl.utils.config import validate_config

    from recipe.flowrl.trainer import RecipeTaskRunner

    class Runner:
        """The task runner, with our SIGTERM handler put back: Ray's own, set while it starts, aborts the process."""

        @staticmethod
        def remote() -> Any:
            sigterm.handle()
            return RecipeTaskRunner.remote()

        options = RecipeTaskRunner.options  # used under a profiler only

    needs_reference = config.flowrl is not None or need_reference_policy(config)
    validate_config(config, use_reference_policy=needs_reference, use_critic=need_critic(config))
    try:
        run_ppo(config, task_runner_class=Runner)
    finally:
        ray.shutdown()


@contextmanager
def output_into(log_path: Path) -> Iterator[TextIO]:
    """Send this process's stdout and stderr, and so what Ray forwards, to a file; yields the terminal."""
    saved = os.dup(1), os.dup(2)
    with open(log_path, "a") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    try:
        with os.fdopen(os.dup(saved[0]), "w", buffering=1, encoding="utf-8", errors="replace") as terminal:
            yield terminal
    finally:
        for descriptor, original in zip((1, 2), saved, strict=True):
            os.dup2(original, descriptor)
            os.close(original)


class Sigterm:
    """Turns SIGTERM into the exception that Ray lets through while it waits for a result, and remembers it."""

    arrived = False

    def handle(self) -> None:
        """Install the handler."""
        signal.signal(signal.SIGTERM, self._raise)

    @contextmanager
    def told_apart(self) -> Iterator[None]:
        """Make what ends the block a :class:`Terminated` where it was the signal."""
        try:
            yield
        except BaseException as error:
            if self.arrived and not isinstance(error, Terminated):
                raise Terminated() from error
            raise

    def _raise(self, signum: int, frame: Any) -> None:
        self.arrived = True
        raise KeyboardInterrupt
