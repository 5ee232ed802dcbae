"""After a rehearsal's training: the export, and an account of what the rehearsal went through."""

import math
import signal
from pathlib import Path

from omegaconf import DictConfig

from recipe.flowrl.checkpoint.export import export
from recipe.flowrl.common.terminal import output_into
from recipe.flowrl.reporting.console import RunConsole
from recipe.flowrl.reporting.run_records import load_run
from verl_ext.checkpoint_files import TRACKER
from verl_ext.faults import RunFault

_DIFFERENCE = "training/rollout_probs_diff_max"
PROBABILITIES_AGREE = 1e-3
"""Rollout and trainer differ by less in float32, if both hold the same weights and see the same tokens."""


def export_and_load(run_dir: Path, output: Path) -> int:
    """Export the last checkpoint to ``output`` and load it with transformers; returns the number of its parameters.

    Raises:
        RuntimeError: it gives no finite logits.
    """
    for signum, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGTERM, signal.SIG_DFL)):
        signal.signal(signum, handler)  # a launch ends with both ignored
    step = (run_dir / "checkpoints" / TRACKER).read_text().strip()
    with output_into(run_dir / "logs" / "export.log") as terminal, RunConsole(terminal) as console:
        with console.phase("exporting and loading the model"):
            export(run_dir / "checkpoints" / f"global_step_{step}", output, "float32")
            return _load(output)


def _load(output: Path) -> int:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(output), AutoModelForCausalLM.from_pretrained(output)
    with torch.no_grad():
        logits = model(**tokenizer("1 + 1 =", return_tensors="pt")).logits
    if not logits.isfinite().all():
        raise RuntimeError(f"the model exported to {output} gives logits that aren't finite")
    return model.num_parameters()


def exercised(config: DictConfig, run_dir: Path, parameters: int) -> list[str]:
    """What the rehearsal went through, with its figures, and what it can't show.

    Args:
        config: of the rehearsal.
        run_dir: what it left.
        parameters: of the exported model.
    """
    metrics = load_run(run_dir).metrics
    said = {name: metrics[name].values[-1] for name in metrics.names}
    steps, responses = (
        config.trainer.total_training_steps,
        config.data.train_batch_size * config.actor_rollout_ref.rollout.n,
    )
    updates = config.data.train_batch_size // config.actor_rollout_ref.actor.ppo_mini_batch_size

    def share(name: str) -> str:
        return f"{said[name]:.1%}" if name in said else "not told"

    difference = _difference(config, run_dir)
    if difference is None:
        synced = "done; probabilities of rollout and trainer not compared: bypass_mode takes the rollout's"
    else:
        agree = "agree" if difference < PROBABILITIES_AGREE else "DIFFER"
        synced = f"probabilities of rollout and trainer {agree} (largest difference {difference:.1g})"
    validated = ", ".join(name.split("/")[1] for name in said if name.startswith("val-core/") and "/acc/mean" in name)
    log_z = f", log Z {said['actor/flowrl/log_z']:+.3f}" if "actor/flowrl/log_z" in said else ""
    rows = {
        "data": f"read, rendered and batched: {config.data.train_files}",
        "rollout": f"{steps} steps of {responses} responses, {said['response_length/mean']:.0f} tokens on average",
        "reward": f"right {share('train/solve_rate')}, no answer {share('train/extraction_failed')}, timed out "
        f"{share('train/timed_out')}, grader failed {share('train/grader_failed')}",
        "update": f"{updates} a step, gradient norm {said['actor/grad_norm']:.2g}{log_z}",
        "weight sync": synced,
        "validation": validated or "no accuracy told",
        "checkpoint": str(run_dir / "checkpoints"),
        "export": f"{run_dir / 'exported'}, {parameters:,} parameters, loads with transformers",
    }
    width = max(map(len, rows))
    return [
        "rehearsed:",
        *(f"  {name:<{width}}  {text}" for name, text in rows.items()),
        "not rehearsed: the real weights, lengths and batches; more than two ranks; flash attention, Triton's kernels,",
        "  bfloat16, sleep mode, NCCL; memory and time (python -m recipe.flowrl plan)",
    ]


def check_agreement(config: DictConfig, run_dir: Path) -> None:
    """Check that the rollout had the trainer's weights, as far as the run tells. ``config``: of the rehearsal.

    Raises:
        RunFault: their probabilities of the same tokens differ.
    """
    difference = _difference(config, run_dir)
    if difference is not None and not difference < PROBABILITIES_AGREE:
        raise RunFault(
            f"the rehearsal went through, but probabilities of rollout and trainer differ by up to {difference:.1g} "
            f"(float32 gives less than {PROBABILITIES_AGREE:g}): vLLM and transformers compute this model differently, "
            "or the weight sync loses something; the run would train on the wrong probabilities"
        )


def _difference(config: DictConfig, run_dir: Path) -> float | None:
    """Largest difference of the two's probabilities of a token, NaN where it is no number; None: not to be compared."""
    if config.algorithm.rollout_correction.bypass_mode:
        return None
    metrics = load_run(run_dir).metrics
    if _DIFFERENCE not in metrics.names:
        return math.nan
    # Of the later steps of an asynchronous run some data were drawn with earlier weights.
    comparable = None if config.trainer.v1.trainer_mode == "sync" else 1
    return metrics[_DIFFERENCE].values[:comparable].max()
