"""The log-probs of a few sequences by the trainer: as the run computes them, and without what makes that fast."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from tensordict import TensorDict
from verl.single_controller.base.decorator import Dispatch, register
from verl.utils import tensordict_utils as tu
from verl.workers.engine_workers import TrainingWorker

from verl_ext.patches import unfused

AS_IN_THE_RUN, PADDED, ONE_BY_ONE, UNFUSED = "as in the run", "padded", "one by one", "unfused"

Sequences = Sequence[tuple[list[int], list[int]]]
"""Token ids of each prompt and its response."""


@dataclass(frozen=True)
class LogProbs:
    """What one data-parallel rank found.

    Args:
        rank: of the data-parallel ranks; its sequences are those from ``rank`` on, in steps of the number of ranks.
        dtype: that the model computes in.
        attention: the implementation that the model uses.
        variants: how they were computed -> a list of the response tokens' log-probs for each of its sequences.
    """

    rank: int
    dtype: str
    attention: str
    variants: dict[str, list[list[float]]]


class LogProbVariants:
    """Put in front of verl's worker of the actor."""

    actor: TrainingWorker

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def log_prob_variants(self, sequences: Sequences, temperature: float) -> LogProbs | None:
        """See :func:`log_prob_variants`."""
        return log_prob_variants(self.actor, sequences, temperature)


def log_prob_variants(worker: TrainingWorker, sequences: Sequences, temperature: float) -> LogProbs | None:
    """Log-probs of this rank's share of ``sequences`` in every way that the run's own way can be compared with.

    A share is one micro-batch: several sequences are packed where the run packs any. Collective.

    Args:
        worker: the actor's.
        sequences: the same on every rank; at least one for each data-parallel rank, and as many for each.
        temperature: by which logits are divided.

    Returns:
        None on a rank for whose sequences another speaks.
    """
    engine = worker.engine
    rank = engine.get_data_parallel_rank()
    share = sequences[rank :: engine.get_data_parallel_size()]
    found = {}
    for name, settings, context in _variants(worker):
        with context:
            output = worker.infer_batch(_batch(share, {"temperature": temperature, **settings}))
        if output is not None:
            rows = tu.get(output, "log_probs").unbind()
            found[name] = [
                row[len(prompt) - 1 :][: len(response)].float().tolist()
                for row, (prompt, response) in zip(rows, share, strict=True)
            ]
    attention = getattr(worker.model_config.hf_config, "_attn_implementation", None)
    dtype = str(getattr(engine, "_autocast_dtype", torch.bfloat16)).removeprefix("torch.")
    return LogProbs(rank, dtype, str(attention), found) if found else None


def _variants(worker: TrainingWorker) -> Iterator[tuple[str, dict[str, Any], AbstractContextManager]]:
    """Name, settings of verl's pass, and where it happens: the run's own first, then with one thing less each."""
    packed, fused = worker.model_config.use_remove_padding, worker.engine_config.use_fused_kernels
    own = {"use_remove_padding": packed, "use_fused_kernels": fused}
    yield AS_IN_THE_RUN, own, nullcontext()
    if packed and worker.engine_config.ulysses_sequence_parallel_size > 1:  # which padded sequences can't have
        yield ONE_BY_ONE, {**own, "micro_batch_size_per_gpu": 1}, nullcontext()
    elif packed:
        yield PADDED, {**own, "use_remove_padding": False}, nullcontext()
    if fused:
        yield UNFUSED, {**own, "use_fused_kernels": False}, unfused()


def _batch(share: Sequences, settings: dict[str, Any]) -> TensorDict:
    """``share`` as verl's V1 trainer dispatches sequences to ``compute_log_prob``."""
    tokens = [torch.tensor([*prompt, *response]) for prompt, response in share]
    columns = {
        "input_ids": tokens,
        "position_ids": [torch.arange(len(row)) for row in tokens],
        "prompts": [torch.tensor(prompt) for prompt, _ in share],
        "responses": [torch.tensor(response) for _, response in share],
        "response_mask": [torch.ones(len(response), dtype=torch.int64) for _, response in share],
        "loss_mask": [torch.ones(len(response), dtype=torch.int64) for _, response in share],
    }
    return tu.get_tensordict(
        {name: torch.nested.as_nested_tensor(rows, layout=torch.jagged) for name, rows in columns.items()},
        non_tensor_dict={
            "compute_loss": False,
            "calculate_entropy": False,
            "use_dynamic_bsz": False,
            "micro_batch_size_per_gpu": len(share),
            **settings,
        },
    )
