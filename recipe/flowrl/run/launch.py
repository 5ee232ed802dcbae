"""From a checked configuration to a finished run: redirect, prepare, train, report, and leave no process behind."""

import os
import signal
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict

from recipe.flowrl import preflight
from recipe.flowrl.checkpoint.resume import Resume, choose, settle, verified
from recipe.flowrl.common.environment import VARIABLES, environment_of
from recipe.flowrl.common.errors import FAILED, account_of, traceback_in
from recipe.flowrl.common.files import alone_in
from recipe.flowrl.common.secrets import remember
from recipe.flowrl.common.signals import Sigterm
from recipe.flowrl.common.terminal import output_into
from recipe.flowrl.preflight.accelerator import settle_attention
from recipe.flowrl.preflight.paths import settle_paths
from recipe.flowrl.prepare.own_tasks import MAKERS, Makers, ensure
from recipe.flowrl.reporting.console import RunConsole
from recipe.flowrl.reporting.events import FIRST_PHASE, EventWriter
from recipe.flowrl.run.run_dir import next_log, recorded_launch, save_config, set_aside_records
from recipe.flowrl.run.supervised import supervised
from verl_ext.guardian import Guardian
from verl_ext.network import EXTERNAL_MODULES, external_modules, one_machine_environment
from verl_ext.processes import adopt_orphans, end_descendants
from verl_ext.template import Template

OF_EVERY_PROCESS = (
    "transformers",
    "tensordict",
    "datasets",
    "peft",
    "torchdata.stateful_dataloader",
    "vllm.entrypoints.openai.api_server",
)
"""What the processes of a run on a CPU would import one by one: what takes seconds, without Ray."""

WITH_RAY = (
    "verl.trainer.main_ppo",
    "verl.trainer.ppo.v1",
    "verl.workers.engine.fsdp.transformer_impl",
    "verl.workers.rollout.vllm_rollout.vllm_async_server",
    "vllm.v1.worker.cpu_worker",
)
"""The rest, which imports Ray."""


def launch(config: DictConfig, said: Collection[str], makers: Makers = MAKERS) -> None:
    """Run what ``config`` says, from preparing its inputs to the report.

    Args:
        config: of the run, checked by :func:`recipe.flowrl.preflight.check`.
        said: the warnings of that check, which the person has seen.
        makers: what the run can make for itself.

    Raises:
        LoggedFailure: the run failed; its log has the traceback.
        UserError: bad input that shows only once the inputs are there; another process writes to the run directory.
        Terminated: a SIGTERM arrived; KeyboardInterrupt for SIGINT. By then no process of the run is left.
    """
    run_dir = Path(config.run_dir).absolute()
    with open_dict(config):
        config.run_dir = str(run_dir)
    OmegaConf.resolve(config)
    settle_attention(config)
    remember(OmegaConf.to_container(config))
    os.environ.update(_environment(config))  # before verl is imported, here and in what Ray starts

    adopt_orphans()
    sigterm = Sigterm()
    sigterm.handle()
    with alone_in(run_dir):
        _launch(config, run_dir, said, makers, sigterm)


def _launch(config: DictConfig, run_dir: Path, said: Collection[str], makers: Makers, sigterm: Sigterm) -> None:
    log_path = next_log(run_dir)
    guardian = Guardian(keep_ray_logs=None if _shares_ray(config) else log_path.with_suffix(".ray"))
    failed = False
    try:
        with (
            traceback_in(log_path),
            sigterm.translated(),
            output_into(log_path) as terminal,
            RunConsole(terminal) as console,
        ):
            console.message(f"run directory: {run_dir}")
            console.message(f"log of verl, Ray and vLLM: {log_path}")
            resume = choose(config)
            if not _already_finished(config, resume.step, console):
                _prepare(config, said, makers, console)
                resume = verified(config, resume, console)
                _train(config, run_dir, resume, console, sigterm, guardian)
    except BaseException as error:
        failed = account_of(error)[1] == FAILED
        raise
    finally:
        for signum in (signal.SIGINT, signal.SIGTERM):  # the end is under way
            signal.signal(signum, signal.SIG_IGN)
        end_descendants(spare={guardian.pid})
        guardian.dismiss(failed)


def _environment(config: DictConfig) -> dict[str, str]:
    """Of this process, and of all below it. What the configuration sets reaches Ray's workers through Ray."""
    given = environment_of(config)
    given[EXTERNAL_MODULES] = external_modules(given)
    key = f"{VARIABLES}.{EXTERNAL_MODULES}"
    OmegaConf.update(config, key, given[EXTERNAL_MODULES], force_add=True)
    return given if _shares_ray(config) else one_machine_environment(given)


def _shares_ray(config: DictConfig) -> bool:
    """Whether the run joins a Ray cluster that it didn't start."""
    return bool(os.environ.get("RAY_ADDRESS") or OmegaConf.select(config, "ray_kwargs.ray_init.address"))


def _already_finished(config: DictConfig, done: int, console: RunConsole) -> bool:
    total = config.trainer.total_training_steps
    finished = total is not None and done >= total
    if finished:
        console.message(
            f"this run has already finished its {total} steps (report: {config.run_dir}/report.html). To go on: more "
            "trainer.total_training_steps; to start anew: another run_dir, or trainer.resume_mode=disable"
        )
    return finished


def _prepare(config: DictConfig, said: Collection[str], makers: Makers, console: RunConsole) -> None:
    """Make the inputs that are missing, then check them all."""
    ensure(config, console, makers)
    with console.phase("checking data, model and reward"):
        warnings = preflight.check_files(config, said, console.message)
        paths = settle_paths(config)
    for warning in warnings:
        console.message(f"warning: {warning}")
    for line in paths:
        console.message(line)


def _train(
    config: DictConfig, run_dir: Path, resume: Resume, console: RunConsole, sigterm: Sigterm, guardian: Guardian
) -> None:
    settle(config, resume)
    if resume.step:
        console.message(f"continuing after step {resume.step}")
    elif superseded := set_aside_records(run_dir):
        console.message(f"starting from scratch; records of the earlier run are now in {superseded}")
    save_config(config, run_dir)

    events = run_dir / "events.jsonl"
    with (
        recorded_launch(config, run_dir, resumed=resume.checkpoint is not None),
        sigterm.translated(),
        _shut_down_ray(),
    ):
        with supervised(events, config.watchdog_s, console, guardian, sigterm.raise_in_main):
            EventWriter(events).write("phase", name=FIRST_PHASE)
            _run_verl(config, sigterm, _template(config, guardian))

    from recipe.flowrl.reporting.run_report import write_report  # seconds to import, not needed until now

    with console.phase("writing the report"):
        report = write_report(run_dir)
    console.message(f"report: {report}")


def _template(config: DictConfig, guardian: Guardian) -> Template | None:
    """What Ray's workers are forked from, where they are of this machine, see no GPU and import what is here."""
    runtime_env = config.ray_kwargs.ray_init.runtime_env
    asked_for = {name for name, value in runtime_env.items() if value is not None}
    if _shares_ray(config) or config.trainer.device != "cpu" or asked_for - {"env_vars"}:
        return None
    template = Template(guardian.directory, OF_EVERY_PROCESS, WITH_RAY)
    runtime_env.py_executable = str(template.python)
    return template


def _run_verl(config: DictConfig, sigterm: Sigterm, template: Template | None) -> None:
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
    if template is not None:
        template.wait()  # Ray gives a worker a minute to be there
    run_ppo(config, task_runner_class=Runner)


@contextmanager
def _shut_down_ray() -> Iterator[None]:
    try:
        yield
    finally:
        import ray

        ray.shutdown()
