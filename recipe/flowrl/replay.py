"""Compute the loss of a kept batch again: ``python -m recipe.flowrl.replay RUN_DIR/nonfinite/step_N_rank_R.pt``.

A run that ends because loss or gradient wasn't finite leaves the batch of its last update (``verl_ext/nonfinite.py``):
what the loss is computed from, log-probs and log Z included. Neither the model nor a GPU is needed to look at it.
"""

import argparse
import os
import pickle
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from recipe.flowrl.errors import UserError, exit_status_of


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


def loss_of(config: DictConfig) -> Callable:
    """The loss of a run, from its resolved configuration."""
    if config.flowrl is not None:
        from recipe.flowrl.config import FlowRLConfig
        from recipe.flowrl.worker import flowrl_worker_loss

        return partial(flowrl_worker_loss, FlowRLConfig.from_mapping(OmegaConf.to_container(config.flowrl)))
    from verl.utils.config import omega_conf_to_dataclass
    from verl.workers.utils.losses import ppo_loss

    return partial(ppo_loss, config=omega_conf_to_dataclass(config.actor_rollout_ref.actor))


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


def _replay_file(path: Path, config_path: Path) -> None:
    if not config_path.is_file():
        raise UserError(f"{config_path} doesn't exist: give the run's resolved configuration with --config")
    config = OmegaConf.load(config_path)
    environment = OmegaConf.select(config, "ray_kwargs.ray_init.runtime_env.env_vars") or {}
    os.environ.update({name: str(value) for name, value in environment.items()})  # before verl is imported
    os.environ.setdefault("VERL_LOGGING_LEVEL", "ERROR")
    with warnings.catch_warnings():  # verl's, of the engines that aren't installed
        warnings.simplefilter("ignore")
        from verl_ext.nonfinite import load_batch

        loss_function = loss_of(config)

    try:
        batch = load_batch(path)
    except (OSError, RuntimeError, pickle.UnpicklingError, KeyError, TypeError) as error:
        reason = str(error).partition("\n")[0]
        raise UserError(f"{path} isn't a batch of a run: {reason}") from error
    print(f"step {batch['step']}, rank {batch['rank']}, gradient norm {batch['grad_norm']}")
    for index, result in enumerate(replay(batch, loss_function)):
        print(_describe(index, result))


def main(arguments: list[str]) -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m recipe.flowrl.replay", description=__doc__.split("\n")[0])
    parser.add_argument("file", type=Path, metavar="FILE", help="a file in RUN_DIR/nonfinite")
    parser.add_argument("--config", type=Path, help="the run's configuration; default: RUN_DIR/config.yaml")
    options = parser.parse_args(arguments)
    try:
        _replay_file(options.file, options.config or options.file.parent.parent / "config.yaml")
    except BaseException as error:
        return exit_status_of(error)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
