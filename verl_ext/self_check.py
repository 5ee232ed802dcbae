"""A run that compares a few log-probs before it trains on them: the rollout server's and the trainer's, and more.

A wrong probability changes no status and no shape: a run whose packed sequences see each other, whose fused kernel
leaves out a softcap, or whose rollout server holds other weights trains for days before a person wonders.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from typing import Any
from uuid import uuid4

import ray

from verl_ext.agreement import HIGH, Difference, difference, precision_of, tolerance
from verl_ext.faults import LogProbsDiffer
from verl_ext.log_prob_variants import AS_IN_THE_RUN, ONE_BY_ONE, PADDED, UNFUSED, LogProbs

ROWS_A_RANK = 4
PROMPT_TOKENS, RESPONSE_TOKENS = 256, 32
"""At most. So few that neither the server nor a rank needs memory worth mentioning for them."""

AT_THE_START, AFTER_THE_SYNC = "at the start", "after the first weight sync"

METRICS = "actor/self_check"
"""Of the pairs packed, fused and rollout: ``/PAIR_mean`` and ``/PAIR_high``, in nats a token."""

_MODEL, _ROLLOUT = "actor_rollout_ref.model", "actor_rollout_ref.rollout"


@dataclass(frozen=True)
class Answer:
    """What a replica of the rollout server answered, and its own log-prob of each token of it."""

    replica: int
    prompt: list[int]
    tokens: list[int]
    log_probs: list[float]


@dataclass(frozen=True)
class Pair:
    """Two ways to the same log-probs, and by how much they are apart."""

    key: str
    names: str
    difference: Difference
    precision: str
    advice: str


class SelfCheck:
    """Asks the rollout servers for a few tokens, and compares their log-probs with the trainer's.

    The two are apart in time: the servers are asked while they are awake, the trainer when it is its turn, so that no
    GPU has to hold both. No weight changes in between.
    """

    def __init__(self) -> None:
        self._point: str | None = None
        self._answers: list[Answer] = []
        self._updated = self._synced = False

    def ask(self, trainer: Any, point: str) -> None:
        """Have every replica answer some of the training prompts. ``trainer``: verl's, whose servers are awake."""
        config = trainer.config
        manager = getattr(trainer, "standalone_server_manager", None) or trainer.llm_server_manager
        replicas, rows = manager.get_replicas(), ROWS_A_RANK * trainer.actor_rollout_wg.world_size
        prompts = list(islice(cycle(_prompts(trainer, rows)), rows))
        sampling = {
            "temperature": config.actor_rollout_ref.rollout.temperature,
            "top_p": 1.0,  # else the server's log-probs would be those of what it may sample
            "top_k": -1,
            "logprobs": True,
            "ignore_eos": True,
            "max_tokens": min(RESPONSE_TOKENS, config.data.max_response_length),
        }
        asked = [
            replicas[row % len(replicas)].server_handle.generate.remote(
                prompt_ids=prompt, sampling_params=sampling, request_id=f"self-check-{uuid4().hex}"
            )
            for row, prompt in enumerate(prompts)
        ]
        outputs = ray.get(asked)
        found = [
            Answer(row % len(replicas), prompts[row], list(output.token_ids), list(output.log_probs))
            for row, output in enumerate(outputs)
            if output.token_ids and output.log_probs
        ]
        self._answers = list(islice(cycle(found), rows))  # as many for each rank
        self._point = point

    def updated(self) -> None:
        """The actor's weights have changed."""
        self._updated = True

    def synced(self, trainer: Any) -> None:
        """The servers have new weights; asks them the first time that there is something new in these."""
        if self._updated and not self._synced:
            self._synced = True
            self.ask(trainer, AFTER_THE_SYNC)

    def judge(self, trainer: Any) -> tuple[str | None, dict[str, float]]:
        """Compare, where there is something to compare: before the update that would change the weights.

        Returns:
            A line for a person (None: there was nothing to compare), and metrics.

        Raises:
            LogProbsDiffer: two that should agree don't.
        """
        point, self._point = self._point, None
        if point is None:
            return None, {}
        if not self._answers:
            return f"warning: self-check {point}: no rollout server answered, so nothing was compared", {}
        temperature = trainer.config.actor_rollout_ref.rollout.temperature
        sequences = [(answer.prompt, answer.tokens) for answer in self._answers]
        found = [f for f in trainer.actor_rollout_wg.log_prob_variants(sequences, temperature) if f is not None]
        pairs = list(_pairs(self._answers, found, trainer.config, point))
        return judgement(pairs, point, temperature)


def judgement(pairs: Sequence[Pair], point: str, temperature: float) -> tuple[str, dict[str, float]]:
    """The line and the metrics of pairs that agree.

    Raises:
        LogProbsDiffer: the first pair that doesn't.
    """
    metrics: dict[str, float] = {}
    for pair in pairs:
        allowed, found = tolerance(pair.precision, temperature), pair.difference
        if not found.within(allowed):
            raise LogProbsDiffer(
                f"self-check {point}: log-probs {pair.names} differ by {found.mean:.2g} nats a token on average and by "
                f"{found.high:.2g} at the {HIGH:.0%} quantile of {found.tokens} tokens ({pair.precision} allows "
                f"{allowed.mean:.2g} and {allowed.high:.2g}): {pair.advice}"
            )
        metrics |= {f"{METRICS}/{pair.key}_mean": found.mean, f"{METRICS}/{pair.key}_high": found.high}
    shown = ", ".join(f"{pair.names} {pair.difference.mean:.1g}" for pair in pairs)
    return f"self-check {point}: log-probs agree (apart on average, in nats: {shown})", metrics


def _prompts(trainer: Any, wanted: int) -> list[list[int]]:
    """Token ids of the shortest of the first training prompts, without the chat template, which matters little here."""
    dataset, most = trainer.train_dataset, min(PROMPT_TOKENS, trainer.config.data.max_prompt_length)
    texts = [
        "\n".join(str(message["content"]) for message in dataset[row]["raw_prompt"])
        for row in range(min(len(dataset), 4 * wanted))
    ]
    encoded = [trainer.tokenizer.encode(text)[:most] for text in texts]
    return sorted((ids for ids in encoded if ids), key=len)[:wanted]


def _pairs(answers: Sequence[Answer], found: Sequence[LogProbs], config: Any, point: str) -> Iterator[Pair]:
    own = _in_order(found, AS_IN_THE_RUN, len(answers))
    attention, trainer = found[0].attention, precision_of([found[0].dtype])
    variants = {
        PADDED: (
            "packed",
            "packed and padded",
            f"this model's attention ({attention}) doesn't keep packed sequences apart, or pads wrongly: set "
            f"{_MODEL}.use_remove_padding=false, or another {_MODEL}.override_config.attn_implementation",
        ),
        ONE_BY_ONE: (
            "packed",
            "packed and one by one",
            f"this model's attention ({attention}) doesn't keep packed sequences apart: set "
            f"actor_rollout_ref.actor.ulysses_sequence_parallel_size=1 {_MODEL}.use_remove_padding=false",
        ),
        UNFUSED: (
            "fused",
            "fused and unfused",
            "the fused kernel leaves out something that this model does to its logits: set "
            f"{_MODEL}.use_fused_kernels=false",
        ),
    }
    for name in (PADDED, ONE_BY_ONE, UNFUSED):
        if name in found[0].variants:
            others = _in_order(found, name, len(answers))
            key, names, advice = variants[name]
            yield Pair(key, names, difference(own, others), trainer, advice)

    rollout = config.actor_rollout_ref.rollout
    dtypes = [found[0].dtype, rollout.dtype, *([f"fp8 ({rollout.quantization})"] if rollout.quantization else [])]
    replicas = sorted({answer.replica for answer in answers})
    by_replica = {replica: [i for i, a in enumerate(answers) if a.replica == replica] for replica in replicas}
    apart = {
        replica: difference([answers[i].log_probs for i in rows], [own[i] for i in rows])
        for replica, rows in by_replica.items()
    }
    worst = max(replicas, key=lambda replica: _badness(apart[replica]))
    names = "of rollout server and trainer" if len(replicas) == 1 else f"of rollout server {worst} and trainer"
    yield Pair("rollout", names, apart[worst], precision_of(dtypes), _rollout_advice(rollout, point, attention))


def _badness(found: Difference) -> float:
    return math.inf if math.isnan(found.mean) else found.mean


def _rollout_advice(rollout: Any, point: str, attention: str) -> str:
    if point == AT_THE_START:
        return (
            f"{rollout.name} and transformers compute this model differently, or the server hasn't got its weights: "
            f"set {_MODEL}.override_config.attn_implementation=eager (it is {attention}), "
            f"{_ROLLOUT}.logprobs_mode=processed_logprobs (it is {rollout.logprobs_mode}); more causes: docs/faults.md"
        )
    sleep = f"set {_ROLLOUT}.free_cache_engine=false; " if rollout.free_cache_engine else ""
    return f"they agreed before the update, so the weight sync loses or garbles weights: {sleep}docs/faults.md"


def _in_order(found: Sequence[LogProbs], variant: str, rows: int) -> list[list[float]]:
    """The ranks' shares as one list, in the order of the sequences."""
    ordered: list[list[float]] = [[] for _ in range(rows)]
    for part in found:
        ordered[part.rank :: len(found)] = part.variants[variant]
    return ordered
