"""From a checked configuration to a finished run: redirect, prepare, train, report, and leave no process behind."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict

from recipe.flowrl import preflight, prepare
from recipe.flowrl.errors import FAILED, account_of
from recipe.flowrl.files import alone_in
from recipe.flowrl.reporting.console import RunConsole
from recipe.flowrl.reporting.events import FIRST_PHASE, EventWriter
from recipe.flowrl.resume import choose, settle, verified
from recipe.flowrl.run_dir import next_log, recorded_launch, save_config, set_aside_records
from recipe.flowrl.signals import Sigterm
from recipe.flowrl.supervised import supervised
from recipe.flowrl.terminal import output_into
from verl_ext.guardian import Guardian
from verl_ext.processes import adopt_orphans, end_descendants

SEEDED_ROLLOUTS = "verl_ext.seeded_rollout.SeededAgentLoopManager"


def launch(config: DictConfig) -> None:
    """Run what ``config`` says, from preparing its inputs to the report.

    Raises:
        UserError: bad input that shows only once the inputs are there; another process writes to the run directory.
        Terminated: a SIGTERM arrived; KeyboardInterrupt for SIGINT. By then no process of the run is left.
    """
    run_dir = Path(config.run_dir).absolute()
    with open_dict(config):
        config.run_dir = str(run_dir)
        if config.deterministic:
            config.actor_rollout_ref.rollout.agent.agent_loop_manager_class = SEEDED_ROLLOUTS
            # Whether a prompt is found in it depends on when the others arrive, and so would the rounding.
            config.actor_rollout_ref.rollout.enable_prefix_caching = False
    OmegaConf.resolve(config)
    # Before verl is imported, here and in what Ray starts.
    environment = OmegaConf.select(config, "ray_kwargs.ray_init.runtime_env.env_vars") or {}
    os.environ.update({name: str(value) for name, value in environment.items()})

    adopt_orphans()
    sigterm = Sigterm()
    sigterm.handle()
    with alone_in(run_dir):
        _launch(config, run_dir, sigterm)


def _launch(config: DictConfig, run_dir: Path, sigterm: Sigterm) -> None:
    log_path = next_log(run_dir)
    guardian = Guardian(keep_ray_logs=None if _shares_ray(config) else log_path.with_suffix(".ray"))
    failed = False
    try:
        with sigterm.told_apart(), output_into(log_path) as terminal, RunConsole(terminal) as console:
            console.message(f"run directory: {run_dir}")
            console.message(f"log of verl, Ray and vLLM: {log_path}")
            if not _already_finished(config, console):
                _prepare(config, console)
                _train(config, run_dir, console, sigterm, guardian)
    except BaseException as error:
        error.log_path = log_path
        failed = account_of(error)[1] == FAILED
        raise
    finally:
        for signum in (signal.SIGINT, signal.SIGTERM):  # the end is under way
            signal.signal(signum, signal.SIG_IGN)
        end_descendants(spare={guardian.pid})
        guardian.dismiss(failed)


def _shares_ray(config: DictConfig) -> bool:
    """Whether the run joins a Ray cluster that it didn't start."""
    return bool(os.environ.get("RAY_ADDRESS") or OmegaConf.select(config, "ray_kwargs.ray_init.address"))


def _already_finished(config: DictConfig, console: RunConsole) -> bool:
    done, total = choose(config).step, config.trainer.total_training_steps
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


def _train(config: DictConfig, run_dir: Path, console: RunConsole, sigterm: Sigterm, guardian: Guardian) -> None:
    resume = verified(config, console)
    settle(config, resume)
    if resume.step:
        console.message(f"continuing after step {resume.step}")
    elif superseded := set_aside_records(run_dir):
        console.message(f"starting from scratch; records of the earlier run are now in {superseded}")
    save_config(config, run_dir)

    events = run_dir / "events.jsonl"
    with recorded_launch(config, run_dir), sigterm.told_apart(), _shut_down_ray():
        with supervised(events, config.watchdog_s, console, guardian, sigterm.raise_in_main):
            EventWriter(events).write("phase", name=FIRST_PHASE)
            _run_verl(config, sigterm)

    from recipe.flowrl.reporting.report import write_report  # seconds to import, not needed until now

    with console.phase("writing the report"):
        report = write_report(run_dir)
    console.message(f"report: {report}")


def _run_verl(config: DictConfig, sigterm: Sigterm) -> None:
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
    run_ppo(config, task_runner_class=Runner)


@contextmanager
def _shut_down_ray() -> Iterator[None]:
    try:
        yield
    finally:
        import ray

        ray.shutdown()
