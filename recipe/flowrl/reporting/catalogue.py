"""Which figures a report shows: each chart with its metrics, what it means, and what to do where they are missing."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from recipe.flowrl.config import SATURATED
from recipe.flowrl.reporting import names
from recipe.flowrl.reporting.figures import Curve, Figure, line_figure, phase_figure, puzzle_figure, resolve
from recipe.flowrl.reporting.run_records import Run

# Phases of a step as verl times them, in the order of a step: label and colour.
PHASES = {
    "gen": ("rollout", "blue"),
    "reward": ("reward", "brown"),
    "old_log_prob": ("old log-probs", "orange"),
    "ref": ("reference log-probs", "teal"),
    "values": ("values", "brown"),
    "adv": ("advantage", "violet"),
    "update_critic": ("critic update", "brown"),
    "update_actor": ("actor update", "pink"),
    "update_weights": ("weight sync", "green"),
    "save_checkpoint": ("checkpoint", "red"),
}


@dataclass(frozen=True)
class Chart:
    """A line chart of the report. ``flowrl_only`` ones are left out silently where another algorithm hasn't them."""

    key: str
    title: str
    caption: str
    curves: tuple[Curve, ...]
    unit: Literal["number", "percent"] = "number"
    log: bool = False
    from_zero: bool = False
    flowrl_only: bool = False
    reference: Callable[[Run], tuple[float, str] | None] = lambda run: None
    advice: str = ""

    def draw(self, run: Run) -> Figure | None:
        """The figure, or None if the run has none of the metrics."""
        curves = resolve(self.curves, run.metrics)
        if not curves:
            return None
        return line_figure(
            self.key,
            self.title,
            self.caption,
            curves,
            unit=self.unit,
            log=self.log,
            from_zero=self.from_zero,
            reference=self.reference(run),
            span=(run.metrics.steps[0], run.metrics.steps[-1]),
        )

    @property
    def missing(self) -> str:
        """One line on why the chart is not there."""
        wanted = " or ".join(curve.pattern for curve in self.curves)
        return f"{self.title}: metrics.jsonl has no {wanted}.{' ' + self.advice if self.advice else ''}"


@dataclass
class Section:
    """A group of figures, with a line for each one left out."""

    title: str
    figures: list[Figure]
    missing: list[str]


def exist_per_puzzle(run: Run) -> float | None:
    """Mean number of distinct solutions that exist per puzzle of the last validation."""
    counts = [p.exist for p in run.last.puzzles if p.exist] if run.last else []
    return float(np.mean(counts)) if counts else None


def _exist_line(run: Run) -> tuple[float, str] | None:
    mean = exist_per_puzzle(run)
    return (mean, f"exist per validation puzzle ({mean:.2f})") if mean else None


LEARNING = (
    Chart(
        "solve-rate",
        "Solve rate",
        "Share of sampled answers that are correct. Training puzzles are sampled at the training temperature; "
        "“best of” counts a puzzle as solved if any of its samples is correct.",
        (
            Curve(names.SOLVE_RATE, "training", "blue"),
            Curve(names.VAL_SOLVE_RATE, "validation, mean of {2}", "orange", "points"),
            Curve(names.VAL_BEST, "validation, best of {2}", "teal", "dashed"),
        ),
        unit="percent",
        from_zero=True,
    ),
    Chart(
        "reward",
        "Reward",
        "Mean score of a training response, before normalisation within its group.",
        (
            Curve(names.REWARD, "training", "blue"),
            Curve("val-core/*/reward/mean@*", "validation, mean of {2}", "orange", "points"),
        ),
    ),
)

DIVERSITY = (
    Chart(
        "distinct-solutions",
        "Distinct solutions found per puzzle",
        "Different correct answers among the samples of one puzzle, mean over puzzles.",
        (
            Curve(names.DISTINCT, "training group", "blue"),
            Curve(names.VAL_DISTINCT, "validation", "orange", "points"),
        ),
        from_zero=True,
        reference=_exist_line,
    ),
    Chart(
        "solution-coverage",
        "Solution coverage",
        "Distinct solutions found, as a share of those that exist. The number of samples per puzzle limits it.",
        (
            Curve("train/solution_coverage", "training group", "blue"),
            Curve(names.VAL_COVERAGE, "validation", "orange", "points"),
        ),
        unit="percent",
        from_zero=True,
    ),
)

OBJECTIVE = (
    Chart(
        "log-z",
        "log Z",
        "Log-partition function of the prompt, mean over the batch. With rewards normalised in groups, whose mean is "
        "0, the optimum stays close to 0; with raw ones it rises with the solve rate.",
        (Curve(names.LOG_Z, "log Z", "violet"),),
        flowrl_only=True,
    ),
    Chart(
        "residual",
        "Trajectory-balance residual",
        "log Z + log π/|y| − β r̂ − log π_ref/|y|, whose weighted square is the loss.",
        (
            Curve("actor/flowrl/residual_abs", "mean absolute value", "blue"),
            Curve("actor/flowrl/residual", "mean", "orange"),
        ),
        flowrl_only=True,
    ),
    Chart(
        "sharpness",
        "Sharpness of the target",
        "Log of the odds that the best answer of a group gains over its worst in the target distribution: beta and the "
        "lengths. Above the line a larger beta changes nothing that can be seen (docs/choosing_beta.md).",
        (Curve(names.TARGET_LOG_ODDS, "log odds", "blue"),),
        log=True,
        flowrl_only=True,
        reference=lambda run: (SATURATED, "saturated"),
    ),
    Chart(
        "reference-share",
        "What the reference contributes to the gradient",
        "Mean modulus of the residual's reference term, as a share of it and the reward's. Near 0 the policy is "
        "trained as a reward maximiser's would be.",
        (Curve(names.REFERENCE_SHARE, "share", "pink"),),
        unit="percent",
        from_zero=True,
        flowrl_only=True,
    ),
    Chart(
        "importance-weight",
        "Importance weight",
        "π/π_old of a trajectory as it enters the loss, after clipping. 1 means on-policy.",
        (Curve("actor/flowrl/importance_weight", "mean weight", "teal"),),
        flowrl_only=True,
        reference=lambda run: (1.0, "on-policy"),
    ),
    Chart(
        "clip-fraction",
        "Clip fraction",
        "Share of importance weights that were clipped (of trajectories in FlowRL, of tokens in GRPO and REINFORCE++).",
        (
            Curve("actor/flowrl/clip_fraction", "clipped", "red"),
            Curve("actor/flowrl/clip_fraction_high", "above", "orange"),
            Curve("actor/flowrl/clip_fraction_low", "below", "violet"),
            Curve("actor/pg_clipfrac", "clipped", "red"),
        ),
        unit="percent",
        from_zero=True,
    ),
    Chart(
        "loss",
        "Loss",
        "The policy loss as optimised.",
        (
            Curve("actor/loss", "actor loss", "blue"),
            Curve("actor/pg_loss", "policy-gradient loss", "grey"),
        ),
    ),
    Chart(
        "ref-kl",
        "KL to the reference policy",
        "Estimated per token from the sampled responses, in nats.",
        (
            Curve("actor/flowrl/ref_kl", "KL(π ‖ π_ref)", "pink"),
            Curve("actor/kl_loss", "KL(π ‖ π_ref)", "pink"),
        ),
        from_zero=True,
        advice="Without a reference policy there is none.",
    ),
)

ASYNCHRONY = (
    Chart(
        "age",
        "Age of the data",
        "Steps by which the oldest weights that drew a part of a response are behind those that are trained.",
        (
            Curve(f"{names.AGE}/mean", "mean", "blue"),
            Curve(f"{names.AGE}/max", "oldest", "grey", peak=True),
        ),
        from_zero=True,
    ),
    Chart(
        "lag",
        "Distance from the policy that drew the data",
        "Modulus of log π/π_rollout of a response, in nats, before the update on it.",
        (
            Curve(f"{names.LAG}/abs_mean", "mean", "blue"),
            Curve(f"{names.LAG}/abs_max", "largest", "grey", peak=True),
            Curve("actor/flowrl/log_importance_ratio_abs_max", "π against π_old, largest", "orange", peak=True),
        ),
        from_zero=True,
        advice="Set actor_rollout_ref.rollout.calculate_log_probs=true.",
    ),
    Chart(
        "left-out",
        "Left out",
        "Share of responses that algorithm.rollout_correction rejected, or gave no weight; number of prompts that were "
        "dropped because they were too old.",
        (
            Curve("rollout_corr/rollout_rs_seq_masked_fraction", "rejected", "red"),
            Curve("rollout_corr/rollout_is_oob_ratio", "without weight", "orange"),
            Curve("training/off_policy/evicted_samples", "dropped prompts", "violet"),
        ),
        from_zero=True,
        advice="Nothing was.",
    ),
)

REPLAY = (
    Chart(
        "replay-age",
        "Age of the replayed rollouts",
        "Steps since the step that trained on them first.",
        (
            Curve("replay/age_mean", "mean", "blue"),
            Curve("replay/age_max", "oldest", "grey", peak=True),
        ),
        from_zero=True,
    ),
    Chart(
        "replay-reward",
        "Reward of the replayed rollouts",
        "Mean reward of the replayed and of the step's new rollouts.",
        (Curve("replay/reward", "replayed", "orange"), Curve(names.REWARD, "new", "blue")),
    ),
    Chart(
        "replay-lag",
        "Distance from the policy that drew the replayed rollouts",
        "Modulus of log π/π_rollout of a response, in nats, before the update on it.",
        (
            Curve("replay/log_ratio_abs_mean", "mean", "blue"),
            Curve("replay/log_ratio_abs_max", "largest", "grey", peak=True),
        ),
        from_zero=True,
        advice="Set actor_rollout_ref.rollout.calculate_log_probs=true.",
    ),
)

IDLE = Chart(
    "idle",
    "Idle time",
    "Share of a step in which the trainer waited for rollouts, and of the time since the last step in which a rollout "
    "server had no request.",
    (Curve(names.TRAINER_IDLE, "trainer", "blue"), Curve(names.SERVERS_IDLE, "rollout servers", "orange")),
    unit="percent",
    from_zero=True,
)

POLICY = (
    Chart(
        "probs-diff",
        "Rollout against trainer probabilities",
        "Absolute difference of a token's probability between the rollout engine and the trainer. In float32 it should "
        "stay below 1e-4; a weight sync that goes wrong shows here first. Asynchronous: only the first step is "
        "comparable: later data are of earlier weights.",
        (
            Curve(names.PROBS_DIFF_MAX, "maximum", "red", peak=True),
            Curve("training/rollout_probs_diff_mean", "mean", "blue"),
        ),
        log=True,
        reference=lambda run: (1e-4, "1e-4"),
        advice="Set actor_rollout_ref.rollout.calculate_log_probs=True.",
    ),
    Chart(
        "entropy",
        "Entropy",
        "Mean entropy of the next token, in nats.",
        (Curve("actor/entropy", "entropy", "teal"),),
    ),
    Chart(
        "response-length",
        "Response length",
        "Tokens per response.",
        (Curve("response_length/mean", "mean", "blue"), Curve("response_length/max", "longest", "grey", peak=True)),
        from_zero=True,
    ),
    Chart(
        "length-clip",
        "Responses cut at the length limit",
        "Share of responses that reached data.max_response_length.",
        (Curve("response_length/clip_ratio", "cut", "red"),),
        unit="percent",
        from_zero=True,
    ),
    Chart(
        "grad-norm",
        "Gradient norm",
        "Before clipping.",
        (
            Curve(names.GRAD_NORM, "policy", "blue", peak=True),
            Curve("actor/flowrl/log_partition_grad_norm", "log Z head", "violet", peak=True),
        ),
        log=True,
    ),
    Chart(
        "clipped-updates",
        "Updates with a clipped gradient",
        "Share of the updates whose gradient's norm was above the limit: there the limit sets the size of a step.",
        (Curve(names.CLIPPED, "clipped", "red"),),
        unit="percent",
        from_zero=True,
    ),
    Chart(
        "throughput",
        "Throughput",
        "Prompt and response tokens per second and device.",
        (Curve("perf/throughput", "tokens/s", "green"),),
        from_zero=True,
    ),
)


@dataclass(frozen=True)
class Phase:
    """A phase of the steps: ``seconds`` of each step, shape ``(N,)``."""

    label: str
    color: str
    seconds: np.ndarray


def phases(run: Run) -> tuple[np.ndarray, list[Phase]]:
    """Steps ``(N,)`` and the phases that take time. Validation is not part of verl's step time, all others are."""
    if names.STEP_TIME not in run.metrics:
        return np.array([]), []
    whole = run.metrics[names.STEP_TIME]

    def seconds(phase: str) -> np.ndarray:
        name = f"timing_s/{phase}"
        series = run.metrics[name] if name in run.metrics else None
        known = dict(zip(series.steps.tolist(), series.values, strict=True)) if series else {}
        return np.array([known.get(step, 0.0) for step in whole.steps.tolist()])

    parts = [Phase(label, color, seconds(name)) for name, (label, color) in PHASES.items()]
    rest = whole.values - sum(part.seconds for part in parts)
    parts += [Phase("other", "grey", np.maximum(0.0, rest)), Phase("validation", "sky", seconds("testing"))]
    return whole.steps, [part for part in parts if part.seconds.any()]


def sections(run: Run) -> list[Section]:
    """All figures of the report, by section. A section without a figure and without a word on it is dropped."""
    diversity = _lines("Diversity", DIVERSITY, run)
    if bars := _puzzles(run):
        diversity.figures.append(bars)
    title = "FlowRL objective" if run.algo == "flowrl" else "Objective"
    time = Section("Time", [], [])
    steps, parts = phases(run)
    if parts:
        caption = "Wall-clock seconds of each phase of a step. Validation comes on top of the step."
        by_label = {part.label: part.seconds for part in parts}
        colors = [part.color for part in parts]
        time.figures.append(phase_figure("phases", "Time per phase", caption, steps, by_label, colors))
    else:
        time.missing.append(f"Time per phase: metrics.jsonl has no {names.STEP_TIME}.")
    if idle := IDLE.draw(run):
        time.figures.append(idle)
    learning = _lines("Learning", LEARNING, run)
    objective, policy = _lines(title, OBJECTIVE, run), _lines("Policy", POLICY, run)
    # None of it is about a synchronous run, whose data are as old as its updates in a step.
    stale = _lines("Asynchrony", ASYNCHRONY if run.asynchronous else (), run)
    replay = _lines("Replay", REPLAY if names.REPLAYED in run.metrics else (), run)
    return [s for s in (learning, diversity, objective, policy, stale, replay, time) if s.figures or s.missing]


def _lines(title: str, charts: tuple[Chart, ...], run: Run) -> Section:
    section = Section(title, [], [])
    for chart in charts:
        figure = chart.draw(run)
        if figure:
            section.figures.append(figure)
        elif not chart.flowrl_only or run.algo == "flowrl":
            section.missing.append(chart.missing)
    return section


def _puzzles(run: Run) -> Figure | None:
    if not run.last or not run.first or not run.last.names_solutions or exist_per_puzzle(run) is None:
        return None
    samples = max(len(p.samples) for p in run.last.puzzles)
    caption = (
        f"Validation puzzles at step {run.last.step}, {samples} samples each. A puzzle may have more solutions than it "
        "was given samples; bars that leave the picture go on above it."
    )
    first = run.first.puzzles if run.first.step != run.last.step else []
    return puzzle_figure("puzzles", "Found against existing, puzzle by puzzle", caption, first, run.last.puzzles)
