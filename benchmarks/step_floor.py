"""Time of a whole RL step against its floor: vLLM alone, then bare PyTorch, on the same tokens.

The run is the real one. Its rollouts are replayed in one process with nothing but vLLM's offline engine, asked for as
many tokens for the same prompts, and its training passes in one process with nothing but the model. Both have the run's
environment variables, threads included.
"""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from omegaconf import DictConfig, OmegaConf

from benchmarks.children import call
from benchmarks.launches import Launch, step_periods
from benchmarks.rollouts import Rollout, read_rollouts, token_count
from benchmarks.rows import Row, ratio_row, summary_row
from benchmarks.stats import paired_ratio, summarize
from recipe.flowrl.common.environment import environment_of
from recipe.flowrl.reporting.console import RunConsole

TARGET = 1.25
WARM_UP_STEPS = 2
LARGEST_TOKEN_ERROR = 0.01
PHASES = {
    "gen": "generation and rewards",
    "old_log_prob": "log-probs of the policy",
    "ref": "log-probs of the reference",
    "update_actor": "update",
}
"""verl's timer of a phase that the floor has as well -> what it is."""
REST = ("adv", "update_weights", "dump_rollout_generations")
"""verl's timers of what the floor lacks."""


def measure(launch: Launch, console: RunConsole) -> dict[str, Any]:
    """Compare the steps of ``launch``, but for the first ones and the last, with their floor.

    Returns:
        ``settings``, ``summary`` and ``samples``, all JSON, times in seconds.

    Raises:
        ValueError: the replayed tokens aren't as many as the run's.
    """
    config = OmegaConf.load(launch.run_dir / "config.yaml")
    periods = dict(enumerate(step_periods(launch.events), start=1))
    steps = [step for step in periods if step > WARM_UP_STEPS]
    rollouts = read_rollouts(launch.run_dir, config, range(1, len(periods) + 1))
    metrics = launch.metrics
    _check_tokens(rollouts, [metrics[step]["perf/total_num_tokens"] for step in periods])

    with console.phase("step_floor: vLLM alone"):
        generated = call("floor_generate", _generation(config, rollouts), environment_of(config))
    with console.phase("step_floor: bare PyTorch"):
        trained = call("floor_train", _training(config, rollouts), environment_of(config))

    samples = []
    for step in steps:
        timers = {name: metrics[step].get(f"timing_s/{name}", 0.0) for name in (*PHASES, *REST)}
        floor = {"gen": generated[step - 1], **trained[step - 1]}
        tokens = token_count(rollouts[step - 1])
        samples.append({"step": step, "tokens": tokens, "period": periods[step], "run": timers, "floor": floor})
    return {
        "settings": {"target": TARGET, "environment": environment_of(config)},
        "summary": _summarize(samples),
        "samples": samples,
    }


def _summarize(samples: list[dict[str, Any]]) -> dict[str, Any]:
    floors = [sum(sample["floor"].values()) for sample in samples]
    return {
        "ratio": asdict(paired_ratio([sample["period"] for sample in samples], floors)),
        "step": asdict(summarize([sample["period"] for sample in samples])),
        "floor": asdict(summarize(floors)),
        "phases": {
            name: {of: asdict(summarize([sample[of][name] for sample in samples])) for of in ("run", "floor")}
            for name in PHASES
        },
        "rest": {name: asdict(summarize([sample["run"][name] for sample in samples])) for name in REST},
        "untimed": asdict(summarize([sample["period"] - sum(sample["run"].values()) for sample in samples])),
    }


def _check_tokens(rollouts: Sequence[Sequence[Rollout]], counted: Sequence[float]) -> None:
    replayed, of_the_run = sum(map(token_count, rollouts)), sum(counted)
    if abs(replayed - of_the_run) > LARGEST_TOKEN_ERROR * of_the_run:
        raise ValueError(f"{replayed} tokens rebuilt from the rollouts, {of_the_run:.0f} in the run: not the same work")


def _generation(config: DictConfig, rollouts: Sequence[Sequence[Rollout]]) -> dict[str, Any]:
    rollout = config.actor_rollout_ref.rollout
    same = ("dtype", "enforce_eager", "max_num_seqs", "max_num_batched_tokens", "enable_chunked_prefill")
    same += ("enable_prefix_caching", "tensor_parallel_size", "seed")
    settings = OmegaConf.to_container(rollout)
    settings["tensor_parallel_size"] = settings["tensor_model_parallel_size"]
    engine = {
        "model": config.actor_rollout_ref.model.path,
        "max_model_len": config.data.max_prompt_length + config.data.max_response_length,
        **{name: settings[name] for name in same},
        **(settings["engine_kwargs"].get("vllm") or {}),
    }
    return {
        "engine": engine,
        "sampling": {"temperature": rollout.temperature, "top_p": rollout.top_p, "top_k": rollout.top_k},
        "steps": [[(row.prompt, len(row.response)) for row in step] for step in rollouts],
    }


def _training(config: DictConfig, rollouts: Sequence[Sequence[Rollout]]) -> dict[str, Any]:
    actor, rollout = config.actor_rollout_ref.actor, config.actor_rollout_ref.rollout
    return {
        "model": config.actor_rollout_ref.model.path,
        "infer_micro_batch": rollout.log_prob_micro_batch_size_per_gpu,
        "mini_batch": actor.ppo_mini_batch_size * rollout.n,
        "micro_batch": actor.ppo_micro_batch_size_per_gpu,
        "steps": [[(row.prompt, row.response) for row in step] for step in rollouts],
    }


def rows(result: dict[str, Any]) -> list[Row]:
    """The table's lines."""
    summary = result["summary"]
    lines = [
        ratio_row("RL step / its floor", summary["ratio"], TARGET),
        summary_row("RL step", summary["step"], "s"),
        summary_row("floor", summary["floor"], "s"),
    ]
    for name, title in PHASES.items():
        phase = summary["phases"][name]
        lines.append(summary_row(f"  {title}", phase["run"], "s"))
        lines.append(summary_row(f"  {title}: floor", phase["floor"], "s"))
    lines += [summary_row(f"  {name}", summary["rest"][name], "s") for name in REST]
    return [*lines, summary_row("  not timed by verl", summary["untimed"], "s")]
