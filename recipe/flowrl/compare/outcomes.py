"""What a trained policy finds on held-out puzzles, and what its run was like."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from recipe.flowrl.checkpoint.export import load_policy
from recipe.flowrl.common.cache import fingerprint
from recipe.flowrl.reporting import names
from recipe.flowrl.reporting.run_records import load_run
from recipe.flowrl.tasks.countdown.reward import COUNTDOWN
from recipe.flowrl.tasks.sampling import sample, sequence_log_probs
from verl_ext.files import sha256

TEMPERATURES = (0.6, 1.0)
BASE_TEMPERATURES = (0.2, 0.4, *TEMPERATURES)
"""The base policy is sampled colder as well: what a policy is worth that was trained beyond making it surer."""
MAX_NEW_TOKENS = 32
_CURVES = {"solve_rate": names.SOLVE_RATE, "grad_norm": names.GRAD_NORM, "distinct": names.DISTINCT}


def evaluate(checkpoint: Path | None, base: Path, puzzles_file: Path, limit: int, samples: int) -> dict[str, Any]:
    """Sample puzzles ``samples`` times at each of :data:`TEMPERATURES`.

    Args:
        checkpoint: ``.../global_step_N``; None is the base policy itself, at :data:`BASE_TEMPERATURES`.
        base: model directory of the base policy.
        puzzles_file: parquet in verl's schema.
        limit: puzzles to take, from the first.
        samples: of each.

    Returns:
        ``exist``, the number of solutions of each puzzle; for each temperature, as text, a list over puzzles of
        ``correct`` (answers of ``samples``) and ``distinct`` solutions; at T = 1 ``entropy`` and ``kl_to_base``, means
        over a puzzle's samples of -log pi(y|x) and log pi/pi_base, in nats.
    """
    puzzles = COUNTDOWN.read(puzzles_file)[:limit]
    base_model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    policy = base_model if checkpoint is None else load_policy(checkpoint)
    tokenizer = AutoTokenizer.from_pretrained(base)
    prompts = [puzzle.prompt for puzzle in puzzles]
    result: dict[str, Any] = {"exist": [puzzle.n_solutions for puzzle in puzzles]}
    for temperature in BASE_TEMPERATURES if checkpoint is None else TEMPERATURES:
        drawn = sample(policy, tokenizer, prompts, samples, temperature=temperature, max_new_tokens=MAX_NEW_TOKENS)
        found = COUNTDOWN.solutions(drawn.texts, puzzles)
        measures = {
            "correct": [sum(map(bool, row)) for row in found],
            "distinct": [len(set(row) - {""}) for row in found],
        }
        if temperature == 1.0:
            log_probs = sequence_log_probs(policy, drawn)
            ratio = log_probs - sequence_log_probs(base_model, drawn)
            measures["entropy"] = (-log_probs).view(-1, samples).mean(-1).tolist()
            measures["kl_to_base"] = ratio.view(-1, samples).mean(-1).tolist()
        result[str(temperature)] = measures
    return result


def weights_fingerprint(model: Path) -> str:
    """Twelve hexadecimal digits that stand for the weights in a model directory.

    The base policy is trained by the same command everywhere, but its weights differ between processors whose vector
    instructions differ, since sums are taken in another order.
    """
    return fingerprint(*[sha256(file) for file in sorted(model.glob("*.safetensors"))])


def training_record(run_dir: Path) -> dict[str, Any]:
    """Curves of a run (``[steps, values]``), the gradient norm's maximum, and the steps with a non-finite metric."""
    metrics = load_run(run_dir).metrics
    curves = {
        name: [metrics[key].steps.tolist(), metrics[key].values.tolist()]
        for name, key in _CURVES.items()
        if key in metrics
    }
    norms = curves.get("grad_norm", [[], []])[1]
    return {
        "curves": curves,
        "grad_norm_max": max(norms, default=None),
        "non_finite_steps": sorted({step for steps in metrics.not_finite.values() for step in steps}),
    }


def final_checkpoint(run_dir: Path) -> Path:
    """The last checkpoint of a run. Raises FileNotFoundError if there is none."""
    step = (run_dir / "checkpoints" / "latest_checkpointed_iteration.txt").read_text().strip()
    return run_dir / "checkpoints" / f"global_step_{step}"
