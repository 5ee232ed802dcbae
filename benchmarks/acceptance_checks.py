"""What ``gpu_acceptance`` checks: a number from the runs' records, and the interval that it has to lie in.

The bounds were set before any of this ran on a GPU: they are what a faultless run should keep, not what was measured.
For one there is a measurement: the 0.5B's shape with 8,192 tokens, in bfloat16, is 0.002 nats a token from itself in
float32.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from benchmarks.acceptance_runs import MEMORY_SHARE, PAIR, STEPS, Evidence
from benchmarks.plan_memory import TOLERANCE
from recipe.flowrl.common.errors import UserError
from recipe.flowrl.reporting import names

PASS, FAIL, NOT_RUN = "pass", "fail", "not run"
NEEDS_CUDA, OUT_OF_TIME, NOT_ASKED_FOR, STILL_TO_COME = "needs CUDA", "out of time", "not asked for", "still to come"

PROBS_DIFF, PEARSON = "training/rollout_probs_diff_mean", "training/rollout_actor_probs_pearson_corr"
K3_KL, REF_KL = "rollout_corr/k3_kl", "actor/flowrl/ref_kl"
CLIPPED = "actor/flowrl/clip_fraction"
UPDATE_TIME, PEAK_GIB = "timing_s/update_actor", "actor/perf/max_memory_allocated_gb"


class EvidenceError(RuntimeError):
    """The records lack what a check needs."""


@dataclass(frozen=True)
class Check:
    """``measure`` gives the number; ``needs``: actions that must have ended well; ``cuda``: means nothing on a CPU."""

    name: str
    title: str
    needs: tuple[str, ...]
    measure: Callable[[Evidence], float]
    low: float | None = None
    high: float | None = None
    unit: str = ""
    cuda: bool = False

    @property
    def bound(self) -> str:
        """In words."""
        if self.low == self.high:
            return f"= {self.low:g}"
        parts = [f">= {self.low:g}"] if self.low is not None else []
        return ", ".join(parts + ([f"<= {self.high:g}"] if self.high is not None else []))


@dataclass(frozen=True)
class Result:
    """Of a check. ``value``: None where there is none; ``why``: of every verdict but pass."""

    name: str
    title: str
    bound: str
    unit: str
    value: float | None = None
    verdict: str = NOT_RUN
    why: str = ""


def judge(check: Check, evidence: Evidence, skipped: Mapping[str, str]) -> Result | None:
    """The result; None as long as an action that it needs is still to come.

    Args:
        check: the check.
        evidence: what there is so far.
        skipped: actions that won't be carried out -> why.
    """
    result = Result(check.name, check.title, check.bound, check.unit)
    if check.cuda and evidence.device != "cuda":
        return replace(result, why=NEEDS_CUDA)
    for action in check.needs:
        if action in skipped:
            return replace(result, why=skipped[action])
        if action in evidence.failures:
            why = evidence.failures[action]
            failed_itself = check.name == action
            return replace(result, verdict=FAIL, why=why) if failed_itself else replace(result, why=f"{action} failed")
        if action not in evidence.seconds:
            return None
    try:
        value = check.measure(evidence)
    except (EvidenceError, UserError, OSError, ValueError, ZeroDivisionError) as error:
        return replace(result, verdict=FAIL, why=str(error))
    inside = (check.low is None or value >= check.low) and (check.high is None or value <= check.high)
    if math.isfinite(value) and inside:
        return replace(result, value=value, verdict=PASS)
    value_or_none = value if math.isfinite(value) else None  # JSON has no nan
    return replace(result, value=value_or_none, verdict=FAIL, why=f"{value:.4g} isn't {check.bound}")


def values(evidence: Evidence, run: str, metric: str, first_step: int = 1) -> list[float]:
    """The metric in each step that a launch took.

    Raises:
        EvidenceError: a step hasn't got it, or there is no step.
    """
    steps = evidence.steps[run]
    lacking = [step for step, metrics in steps.items() if metric not in metrics]
    if lacking or not steps:
        raise EvidenceError(f"{run}: {metric} isn't in metrics.jsonl" + (f" at step {lacking[0]}" if lacking else ""))
    return [metrics[metric] for step, metrics in steps.items() if step >= first_step]


def worst(numbers: Iterable[float], least: bool = False) -> float:
    """The largest, or with ``least`` the smallest; nan if one of them is.

    Raises:
        EvidenceError: there are none.
    """
    listed = list(numbers)
    if not listed:
        raise EvidenceError("no step")
    if any(math.isnan(number) for number in listed):
        return math.nan
    return min(listed) if least else max(listed)


def _steady(evidence: Evidence, run: str, metric: str) -> float:
    """The mean over the steps after the first, which compiles and allocates."""
    later = values(evidence, run, metric, first_step=2)
    if not later:
        raise EvidenceError(f"{run}: no step after the first")
    return sum(later) / len(later)


def _ratio(over: str, under: str, metric: str, of: Callable[..., float] = _steady) -> Callable[[Evidence], float]:
    return lambda evidence: of(evidence, over, metric) / of(evidence, under, metric)


def _peak(evidence: Evidence, run: str, metric: str = PEAK_GIB) -> float:
    return worst(values(evidence, run, metric))


def _worst_of(run: str, metric: str, least: bool = False, first_step: int = 1) -> Callable[[Evidence], float]:
    return lambda evidence: worst(values(evidence, run, metric, first_step), least)


def _not_finite(run: str) -> Callable[[Evidence], float]:
    """How many of log Z, loss and gradient norm, over the steps, aren't finite."""
    metrics = (names.LOG_Z, "actor/loss", names.GRAD_NORM)
    return lambda evidence: sum(not math.isfinite(v) for metric in metrics for v in values(evidence, run, metric))


def _staleness(evidence: Evidence, run: str) -> float:
    """About 1 where the rollout still has the first weights, and 0 where it has the trainer's.

    On a GPU the server slept in between.
    """
    moved = values(evidence, run, REF_KL)[-1]
    if moved <= 0:
        raise EvidenceError(f"{run}: the policy is still the reference at the last step: {REF_KL} is {moved:g}")
    return abs(values(evidence, run, K3_KL)[-1]) / moved


def planned_bytes(evidence: Evidence, run: str) -> float:
    """What ``plan`` says of the trainer's worst moment, without what isn't PyTorch's."""
    from recipe.flowrl.common.gpus import GPU
    from recipe.flowrl.plan.architecture import load_architecture, shape_of
    from recipe.flowrl.plan.memory import RUNTIME, plan_memory
    from recipe.flowrl.preflight.compose import compose_run

    config = compose_run(evidence.overrides(run))
    shape = shape_of(load_architecture(config.actor_rollout_ref.model.path), config.flowrl)
    gpu = GPU(evidence.gpu_bytes, flops=0.0, bandwidth=0.0)  # for the trainer's memory none matters
    phases = plan_memory(config, shape, gpu).phases
    return max(size for phase, size in phases.items() if phase != "rollout") - RUNTIME


def _planned_over_measured(run: str) -> Callable[[Evidence], float]:
    return lambda evidence: planned_bytes(evidence, run) / (_peak(evidence, run) * 2**30)


def _tracked_step(evidence: Evidence) -> float:
    checkpoints = evidence.directory("fused") / "checkpoints"
    tracked = int((checkpoints / "latest_checkpointed_iteration.txt").read_text())
    if not (checkpoints / f"global_step_{tracked}").is_dir():
        raise EvidenceError(f"{checkpoints}: global_step_{tracked} is named, but isn't there")
    return tracked


def _first_resumed_step(evidence: Evidence) -> float:
    return worst(evidence.steps["resumed"], least=True)


def _given_back(evidence: Evidence) -> float:
    """Of vLLM's share, how much more is in use in a rollout than at the least between rollouts."""
    launch = evidence.launches["fused"]
    spans = phase_spans(launch.events)
    inside = {
        name: [b for t, b in evidence.gpu_memory for x, y, n in spans if n == name and x <= t < y]
        for name in ("rollout", "log-probs", "update")
    }
    awake, between = inside["rollout"], [*inside["log-probs"], *inside["update"]]
    if not awake or not between:
        raise EvidenceError("no sample of the GPU's memory in a rollout, or none between two")
    return (max(awake) - min(between)) / (MEMORY_SHARE * evidence.gpu_bytes)


def phase_spans(events: list[dict[str, Any]]) -> list[tuple[float, float, str]]:
    """Begin, end (seconds since the epoch) and name of each phase that another event follows."""
    pairs = zip(events, events[1:], strict=False)
    return [(event["time"], after["time"], event["name"]) for event, after in pairs if event["event"] == "phase"]


def _exported_share(evidence: Evidence) -> float:
    return evidence.exported / evidence.parameters["qwen2.5-0.5b-untied"]


def _agreement(run: str, title: str) -> list[Check]:
    return [
        Check(
            f"{run}: probabilities",
            f"{title}: mean difference of rollout's and trainer's token probabilities, worst step",
            (run,),
            _worst_of(run, PROBS_DIFF),
            high=0.01,
        ),
        Check(
            f"{run}: correlation",
            f"{title}: correlation of rollout's and trainer's token probabilities, worst step",
            (run,),
            _worst_of(run, PEARSON, least=True),
            low=0.99,
        ),
        Check(
            f"{run}: KL",
            f"{title}: KL of rollout's and trainer's distributions (k3), worst step",
            (run,),
            _worst_of(run, K3_KL),
            high=0.02,
            unit="nats a token",
        ),
    ]


def _flowrl(run: str, title: str) -> list[Check]:
    return [
        Check(
            f"{run}: clipped",
            f"{title}: clip fraction of a step's first mini-batch, worst step",
            (run,),
            _worst_of(run, CLIPPED),
            high=0.1,
        ),
        Check(
            f"{run}: not finite",
            f"{title}: log Z, loss and gradient norm that aren't finite",
            (run,),
            _not_finite(run),
            low=0,
            high=0,
        ),
        Check(
            f"{run}: weight sync",
            f"{title}: KL of rollout and trainer / KL of trainer and reference, last step",
            (run,),
            partial(_staleness, run=run),
            high=0.1,
        ),
    ]


def _memory(run: str, title: str) -> Check:
    return Check(
        f"{run}: memory",
        f"{title}: peak memory of the trainer, planned / measured",
        (run,),
        _planned_over_measured(run),
        1 - TOLERANCE,
        1 + TOLERANCE,
        cuda=True,
    )


def all_checks(limits: Mapping[str, float], titles: Mapping[str, str]) -> list[Check]:
    """In order. ``limits``, ``titles``: of the actions; that each ends in time is a check of its own."""
    ends = [
        Check(action, f"{titles[action]}: ends well", (action,), lambda e, a=action: e.seconds[a], high=limit, unit="s")
        for action, limit in limits.items()
    ]
    return [
        *ends,
        *_agreement("fused", "fused"),
        *_flowrl("fused", "fused"),
        _memory("fused", "fused"),
        *_fused_run_alone(),
        *_agreement("resumed", "resumed"),
        *_flowrl("resumed", "resumed"),
        *_agreement("grpo", "GRPO"),
        *_agreement("large", "1.5B"),
        *_flowrl("large", "1.5B"),
        _memory("large", "1.5B"),
        *_agreement("unfused", "unfused"),
        *_flowrl("unfused", "unfused"),
        _memory("unfused", "unfused"),
        *_comparisons(),
        *_two_at_once(),
    ]


def _fused_run_alone() -> list[Check]:
    return [
        Check(
            "save",
            "step of the checkpoint that the tracker names, after resuming",
            ("fused", "resumed"),
            _tracked_step,
            STEPS + 1,
            STEPS + 1,
        ),
        Check("resume", "first step after resuming", ("resumed",), _first_resumed_step, STEPS + 1, STEPS + 1),
        Check("exported", "parameters exported / the model's", ("export",), _exported_share, 1, 1),
        Check(
            "sleep",
            "of vLLM's share of the GPU, given back between rollouts",
            ("fused",),
            _given_back,
            low=0.5,
            cuda=True,
        ),
        Check(
            "step time",
            "a step of the 0.5B, the first left out",
            ("fused",),
            lambda e: _steady(e, "fused", names.STEP_TIME),
            high=30,
            unit="s",
            cuda=True,
        ),
    ]


def _comparisons() -> list[Check]:
    return [
        Check(
            "FlowRL / GRPO: time",
            "time of an update, FlowRL / GRPO with a KL term",
            ("fused", "grpo"),
            _ratio("fused", "grpo", UPDATE_TIME),
            high=1.1,
            cuda=True,
        ),
        Check(
            "FlowRL / GRPO: memory",
            "peak memory of the trainer, FlowRL / GRPO with a KL term",
            ("fused", "grpo"),
            _ratio("fused", "grpo", PEAK_GIB, _peak),
            high=1.05,
            cuda=True,
        ),
        Check(
            "fused / unfused: time",
            "time of an update, fused / unfused",
            ("fused", "unfused"),
            _ratio("fused", "unfused", UPDATE_TIME),
            high=1.5,
            cuda=True,
        ),
        Check(
            "fused / unfused: memory",
            "peak memory of the trainer, fused / unfused",
            ("fused", "unfused"),
            _ratio("fused", "unfused", PEAK_GIB, _peak),
            high=1,
            cuda=True,
        ),
    ]


def _two_at_once() -> list[Check]:
    return [
        # Weights that went to the other run's server would show here.
        Check(
            "pair: KL",
            "two runs at once: KL of rollout's and trainer's distributions (k3), worst step",
            ("pair",),
            lambda evidence: worst(v for run in PAIR for v in values(evidence, run, K3_KL)),
            high=0.02,
            unit="nats a token",
        ),
        Check(
            "pair: weight sync",
            "two runs at once: KL of rollout and trainer / KL of trainer and reference, last step",
            ("pair",),
            lambda evidence: worst(_staleness(evidence, run) for run in PAIR),
            high=0.1,
        ),
    ]
