"""One run of an exact study through the whole stack: ``main_flowrl`` trains, then each checkpoint is measured.

It reads and leaves what :mod:`.exact_run` does. A run that was cut off goes on from its last checkpoint.
"""

import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch
from transformers import AutoModelForCausalLM

from recipe.flowrl.checkpoint.export import load_policy
from recipe.flowrl.common.files import replacing, write_json, write_text
from recipe.flowrl.common.jsonl import to_line
from recipe.flowrl.compare.exact_measures import rounded
from recipe.flowrl.compare.exact_run import DONE, POINTS, SAMPLED_EVERY, Run, measuring_of, read_run
from recipe.flowrl.preflight.compose import compose_run
from recipe.flowrl.reporting import names
from recipe.flowrl.reporting.run_records import Metrics, load_run

STACK = "stack"
"""The run of ``main_flowrl`` in RUN_DIR."""
_TRAINING = {"reward": names.REWARD, "grad_norm": names.GRAD_NORM, "clipped": names.CLIPPED}


def carry_out(run: Run, run_dir: Path) -> None:
    """Train on the puzzles of the run, then measure the base policy and each checkpoint."""
    config = compose_run(list(run.overrides))
    puzzles, stack = run_dir / "puzzles.parquet", run_dir / STACK
    with replacing(puzzles) as temporary:
        pq.write_table(pq.read_table(config.data.train_files).slice(0, run.train_puzzles), temporary)
    status = subprocess.run(
        [sys.executable, "-m", "recipe.flowrl.main_flowrl", *run.overrides, *_overrides(run, config, puzzles, stack)]
    ).returncode
    if status:
        sys.exit(status)
    measuring, metrics = measuring_of(run, config), load_run(stack).metrics
    points: list[dict[str, Any]] = []
    rollouts = config.data.train_batch_size * config.actor_rollout_ref.rollout.n
    for step in [*range(0, run.steps, run.every), run.steps]:
        if step:
            policy = load_policy(stack / "checkpoints" / f"global_step_{step}")
        else:
            policy = AutoModelForCausalLM.from_pretrained(measuring.base, dtype=torch.float32)
        point = measuring.point(policy, step % SAMPLED_EVERY == 0 or step == run.steps)
        said = _training(metrics, points[-1]["step"] if points else 0, step)
        points.append({"step": step, "samples": step * rollouts, **point, "training": said})
    write_text(run_dir / POINTS, "".join(map(to_line, points)))
    write_json(run_dir / DONE, {"step": run.steps, "collapsed": False, "run": asdict(run)})


def _overrides(run: Run, config: Any, puzzles: Path, stack: Path) -> list[str]:
    head_seed = config.actor_rollout_ref.actor.fsdp_config.seed + config.data.seed
    return [
        f"run_dir={stack}",
        f"data.train_files={puzzles}",
        f"actor_rollout_ref.actor.fsdp_config.seed={head_seed}",
        f"trainer.total_training_steps={run.steps}",
        f"trainer.total_epochs={run.steps}",
        f"trainer.save_freq={run.every}",
        "trainer.max_actor_ckpt_to_keep=null",
        "trainer.test_freq=-1",
        "trainer.val_before_train=false",
    ]


def _training(metrics: Metrics, after: int, until: int) -> dict[str, float]:
    """Means over the steps between two evaluations."""
    result: dict[str, float] = {}
    for name, key in _TRAINING.items():
        series = metrics[key]
        between = (series.steps > after) & (series.steps <= until)
        result |= {name: rounded(series.values[between].mean())} if between.any() else {}
    return result


if __name__ == "__main__":
    carry_out(read_run(Path(sys.argv[1])), Path(sys.argv[1]))
