"""Computes the loss of a kept batch again.

A run that ends because loss or gradient wasn't finite leaves the batch of its last update (``verl_ext/nonfinite.py``):
what the loss is computed from, log-probs and log Z included. Neither the model nor a GPU is needed to look at it.
"""

import io
import os
import pickle
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from recipe.flowrl.common.environment import environment_of
from recipe.flowrl.common.errors import UserError
from recipe.flowrl.common.foreign import read_text, without_aliases

_OF_VERL = {
    "verl.trainer.config.CheckpointConfig",
    *(f"verl.utils.profiler.{name}" for name in ("ProfilerConfig", "config.NPUToolConfig", "config.NsightToolConfig")),
    *(f"verl.utils.profiler.config.{name}ToolConfig" for name in ("TorchMemory", "TorchProfiler", "PrecisionDebugger")),
    "verl.utils.profiler.config.TorchProfilerScheduleConfig",
    *(f"verl.workers.config.FSDP{name}Config" for name in ("Actor", "Engine", "Optimizer")),
    *(f"verl.workers.config.{name}" for name in ("PolicyLossConfig", "EngineRouterReplayConfig", "QATEngineConfig")),
}
"""The classes that an FSDP actor's configuration names: plain records, whatever they hold."""


_UNREADABLE = (
    OSError,
    RuntimeError,
    pickle.UnpicklingError,
    LookupError,
    TypeError,
    ValueError,
    AttributeError,
    EOFError,
)


@dataclass(frozen=True)
class Replayed:
    """One micro-batch.

    Args:
        recorded, loss: the loss then and now.
        rows: its sequences.
        bad_inputs: name -> sequences in which that input isn't finite.
        bad_gradients: sequences whose log-probs get a gradient that isn't finite.
    """

    recorded: float
    loss: float
    rows: int
    bad_inputs: dict[str, list[int]]
    bad_gradients: list[int]


def replay(batch: dict[str, Any], loss_function: Callable) -> list[Replayed]:
    """Compute loss and gradient of each micro-batch of ``batch`` (``verl_ext.nonfinite.load_batch``).

    Args:
        batch: its model outputs get a gradient.
        loss_function: called as verl's engine does, ``loss_function(model_output=..., data=...)``.
    """
    results = []
    for micro_batch in batch["micro_batches"]:
        data = micro_batch["data"]
        outputs = {name: value.detach().requires_grad_() for name, value in micro_batch["model_output"].items()}
        loss, _ = loss_function(model_output=outputs, data=data)
        loss.backward()
        gradient = outputs["log_probs"].grad
        tensors = {**{name: data[name] for name in data.keys()}, **outputs}
        bad = {name: _bad_rows(value) for name, value in tensors.items() if hasattr(value, "is_floating_point")}
        results.append(
            Replayed(
                recorded=micro_batch["loss"],
                loss=loss.item(),
                rows=len(data),
                bad_inputs={name: rows for name, rows in bad.items() if rows},
                bad_gradients=[] if gradient is None else _bad_rows(gradient),
            )
        )
    return results


def loss_of(config: DictConfig, trust: bool = False) -> Callable:
    """The loss of a run, from its resolved configuration.

    Args:
        config: whoever wrote it.
        trust: classes that it names may be made, whichever they are.

    Raises:
        UserError: the configuration isn't one of a run.
    """
    if config.get("flowrl") is not None:
        from recipe.flowrl.config import FlowRLConfig
        from recipe.flowrl.worker import flowrl_worker_loss

        return partial(flowrl_worker_loss, FlowRLConfig.from_mapping(OmegaConf.to_container(config.flowrl)))
    from verl.utils.config import omega_conf_to_dataclass
    from verl.workers.utils.losses import ppo_loss

    actor = OmegaConf.select(config, "actor_rollout_ref.actor")
    if actor is None:
        raise UserError("no configuration of a run: it has no actor_rollout_ref.actor")
    # verl makes whatever class a "_target_" names, at any depth.
    named = set(_targets(OmegaConf.to_container(actor, resolve=False))) - _OF_VERL
    if named and not trust:
        raise UserError(
            f"actor_rollout_ref.actor names the class {min(named)}, which would be run: trust=true if you know whose "
            "configuration it is"
        )
    return partial(ppo_loss, config=omega_conf_to_dataclass(actor))


def _targets(value: Any) -> list[str]:
    if isinstance(value, dict):
        own = [str(inner) for name, inner in value.items() if name == "_target_"]
        return own + [name for inner in value.values() for name in _targets(inner)]
    return [name for inner in value for name in _targets(inner)] if isinstance(value, list) else []


def _bad_rows(value: Any) -> list[int]:
    if not value.is_floating_point() or value.dim() == 0:
        return []
    return [index for index, row in enumerate(value.unbind()) if not row.isfinite().all()]


def _describe(index: int, result: Replayed) -> str:
    lines = [f"micro-batch {index}: {result.rows} sequences, loss {result.loss} (then {result.recorded})"]
    lines += [f"  {name} isn't finite in sequences {rows}" for name, rows in result.bad_inputs.items()]
    if result.bad_gradients:
        lines.append(f"  the gradient of log_probs isn't finite in sequences {result.bad_gradients}")
    return "\n".join(lines)


def replay_file(path: Path, config_path: Path, trust: bool = False) -> None:
    """Print each micro-batch's loss then and now, and what in it isn't finite.

    Args:
        path: the batch.
        config_path: the resolved configuration of its run.
        trust: what the configuration names may be run.

    Raises:
        UserError: one of them is missing or damaged, or the configuration names code.
    """
    if not config_path.is_file():
        raise UserError(f"{config_path} doesn't exist: give the run's resolved configuration with config=")
    try:
        config = OmegaConf.load(io.StringIO(without_aliases(read_text(config_path))))
        environment = environment_of(config)
    except (OSError, ValueError, AttributeError, RecursionError, YAMLError, OmegaConfBaseException) as error:
        raise UserError(f"{config_path} isn't the configuration of a run: {_first_line(error)}") from error
    if not trust:  # a variable can name code to run
        on_cpu = environment.get("VERL_PLATFORM") == "cpu"
        environment = {"VERL_PLATFORM": "cpu", "VERL_USE_EXTERNAL_MODULES": "verl_ext.cpu"} if on_cpu else {}
    os.environ.update(environment)  # before verl is imported
    os.environ.setdefault("VERL_LOGGING_LEVEL", "ERROR")
    with warnings.catch_warnings():  # verl's, of the engines that aren't installed
        warnings.simplefilter("ignore")
        from verl_ext.nonfinite import load_batch

        try:
            loss_function = loss_of(config, trust)
        except UserError as error:
            raise UserError(f"{config_path}: {error}") from error
        except (AssertionError, AttributeError, TypeError, ValueError, OmegaConfBaseException, HydraException) as error:
            raise UserError(f"{config_path} isn't the configuration of a run: {_first_line(error)}") from error

    try:
        batch = load_batch(path)
        head = f"step {int(batch['step'])}, rank {int(batch['rank'])}, gradient norm {float(batch['grad_norm'])}"
        results = replay(batch, loss_function)
    except _UNREADABLE as error:
        raise UserError(f"{path} isn't a batch of a run: {_first_line(error)}") from error
    print(head)
    for index, result in enumerate(results):
        print(_describe(index, result))


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:300]
