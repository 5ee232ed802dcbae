"""The task through the whole stack: a run of ``main_flowrl``, then its checkpoints, measured like the objective's."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedModel

from recipe.flowrl.checkpoint.export import load_policy
from recipe.flowrl.common.errors import UserError
from recipe.flowrl.config import FlowRLConfig
from recipe.flowrl.distribution.exact import Enumeration
from recipe.flowrl.distribution.objective_mode import Point
from recipe.flowrl.partition import LogPartition
from recipe.flowrl.reporting.names import REPLAYED
from recipe.flowrl.reporting.run_records import load_run
from recipe.flowrl.tasks.modes.data import PROMPTS


def train(run_dir: Path, overrides: list[str]) -> None:
    """Run ``main_flowrl`` in ``run_dir``; its console is ours. A run that is finished is left alone.

    Raises:
        UserError: it failed; its console says why.
    """
    command = [sys.executable, "-m", "recipe.flowrl.main_flowrl", f"run_dir={run_dir}", *overrides]
    # Not run(): that kills a child in the midst of its own end.
    if status := subprocess.Popen(command).wait():
        raise UserError(f"the training run in {run_dir} ended with status {status}")


def points(
    run_dir: Path, enumeration: Enumeration, flowrl: FlowRLConfig | None, samples_per_prompt: int
) -> list[Point]:
    """The untrained policy and the policy of every checkpoint, the last step last.

    Raises:
        UserError: there is no checkpoint.
    """
    checkpoints = {
        int(match[1]): path
        for path in (run_dir / "checkpoints").glob("global_step_*")
        if (match := re.fullmatch(r"global_step_(\d+)", path.name))
    }
    if not checkpoints:
        raise UserError(f"{run_dir}: no checkpoint to measure")
    found = [Point(0, 0, enumeration.reference_log_probs, None)]
    metrics = load_run(run_dir).metrics
    replayed = metrics[REPLAYED].values.cumsum() if REPLAYED in metrics else np.zeros(max(checkpoints))
    for step, checkpoint in sorted(checkpoints.items()):
        model = load_policy(checkpoint)
        log_z = _log_z(checkpoint, model, enumeration, flowrl)
        samples = round((step - float(replayed[step - 1])) * len(PROMPTS) * samples_per_prompt)
        found.append(Point(step, samples, enumeration.log_probs(model), log_z))
    return found


@torch.no_grad()
def _log_z(
    checkpoint: Path, model: PreTrainedModel, enumeration: Enumeration, flowrl: FlowRLConfig | None
) -> torch.Tensor | None:
    if flowrl is None or flowrl.partition != "learned":
        return None
    head = LogPartition(model.config.hidden_size, flowrl).eval()
    head.load_state_dict(torch.load(checkpoint / "actor" / "log_partition.pt", weights_only=True)["model"])
    return head(model.get_decoder()(enumeration.prompt_ids).last_hidden_state.mean(1))
