"""The plan in lines of text."""

from omegaconf import DictConfig

from recipe.flowrl.common.errors import UserError
from recipe.flowrl.common.gpus import GPU, GPUS
from recipe.flowrl.common.rules import guess
from recipe.flowrl.models.files import directory_of
from recipe.flowrl.plan.advice import problems
from recipe.flowrl.plan.architecture import ModelShape, load_architecture, shape_of
from recipe.flowrl.plan.duration import Assumptions, DurationPlan, plan_duration
from recipe.flowrl.plan.memory import RUNTIME, MemoryPlan, plan_memory, worst
from recipe.flowrl.preflight.paths import settle_paths
from recipe.flowrl.preflight.separate import refuse_separate


def report(config: DictConfig, gpu_name: str) -> tuple[list[str], list[str]]:
    """The lines to print, and what doesn't fit.

    Raises:
        UserError: the model or the GPU isn't known.
    """
    if gpu_name not in GPUS:
        raise UserError(f"gpu={gpu_name}: unknown{guess(gpu_name, GPUS)}; there are {', '.join(GPUS)}")
    gpu, config = GPUS[gpu_name], config.copy()
    # Those of other models, on the hub, are tried where the run starts.
    paths = settle_paths(config) if directory_of(config.actor_rollout_ref.model.path) else []
    shape, memory, critic = planned(config, gpu)
    lines = [_title(config, shape, gpu_name), *paths, *_memory_lines(memory, gpu.memory)]
    wrong = problems(config, memory, gpu)
    if not wrong:
        lines += _duration_lines(plan_duration(config, shape, gpu, memory, Assumptions(), critic))
    return lines, wrong


def planned(config: DictConfig, gpu: GPU) -> tuple[ModelShape, MemoryPlan, ModelShape | None]:
    """The run's model, the memory it takes, and its critic, if it has one.

    Raises:
        UserError: a model isn't known, or the rollout has GPUs of its own.
    """
    refuse_separate(config, "plan")
    shape = shape_of(load_architecture(config.actor_rollout_ref.model.path), config.flowrl)
    critic = None
    if config.critic.enable or (config.critic.enable is None and config.algorithm.adv_estimator == "gae"):
        critic = shape_of(load_architecture(config.critic.model.path), None).critic
    return shape, plan_memory(config, shape, gpu, critic), critic


def _duration_lines(duration: DurationPlan) -> list[str]:
    phases = ", ".join(f"{name} {seconds:.0f}" for name, seconds in duration.phases.items())
    lines = [
        f"a step: {duration.tokens / 1e6:.1f} M tokens, {duration.flops / 1e18:.1f} EFLOP, "
        f"about {duration.step_s:.0f} s ({phases})"
    ]
    if duration.steps:
        lines.append(f"the run: {duration.steps} steps, about {duration.steps * duration.step_s / 3600:.1f} h")
    assumed = Assumptions()
    shares = (
        f"training at {assumed.training_share:.0%} of peak FLOP/s, decoding at {assumed.decoding_share:.0%} of memory "
        f"bandwidth, a mean response of {assumed.response_share:.0%} of the longest"
    )
    return lines + [
        f"assumed, not measured: {shares}, {assumed.prompt_tokens} tokens a prompt, {RUNTIME / 1e9:.1f} GB for CUDA "
        "and NCCL, no validation, no checkpoints"
    ]


def _title(config: DictConfig, shape: ModelShape, gpu_name: str) -> str:
    head = f" and {shape.head_parameters / 1e6:.1f} M of the log Z head" if shape.head_parameters else ""
    gpus = f"{config.trainer.nnodes} x {config.trainer.n_gpus_per_node} {gpu_name}"
    return f"{config.actor_rollout_ref.model.path}: {shape.parameters / 1e9:.2f} B parameters{head}, on {gpus}"


def _memory_lines(memory: MemoryPlan, available: float) -> list[str]:
    lines = []
    sections = {
        "always": memory.resident | {"CUDA, NCCL": RUNTIME},
        f"in the update, {memory.worst_moment}": memory.update[memory.worst_moment],
        "in the passes for log-probs": memory.log_probs,
    }
    if memory.critic_update:
        moment = worst(memory.critic_update)
        sections[f"in the critic's update, {moment}"] = memory.critic_update[moment]
    sections["in the rollout"] = memory.rollout
    sections["on each node's host"] = memory.host
    sections["on the first node's host, while loading"] = memory.loading
    for title, parts in sections.items():
        lines.append(f"{title}:")
        lines += [f"  {size / 1e9:7.1f} GB  {name}" for name, size in parts.items()]
    others = {moment: sum(parts.values()) for moment, parts in memory.update.items() if moment != memory.worst_moment}
    lines.append(
        f"less in the update {', '.join(f'{moment} ({size / 1e9:.1f} GB)' for moment, size in others.items())}"
    )
    for phase, needed in memory.phases.items():
        fits = "fits" if needed <= available else "DOES NOT FIT"
        lines.append(f"{phase}: {needed / 1e9:.1f} of {available / 1e9:.0f} GB on each GPU: {fits}")
    lines.append(f"host: {memory.host_peak / 1e9:.1f} GB on a node, beside Ray, vLLM and what they import")
    lines.append(f"rollout server: {memory.longest_sequences} sequences of full length at once")
    return lines
