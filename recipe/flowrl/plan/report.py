"""The plan in lines of text."""

from omegaconf import DictConfig

from recipe.flowrl.errors import UserError
from recipe.flowrl.plan.advice import problems
from recipe.flowrl.plan.duration import Assumptions, DurationPlan, plan_duration
from recipe.flowrl.plan.gpus import GPUS
from recipe.flowrl.plan.memory import RUNTIME, MemoryPlan, plan_memory
from recipe.flowrl.plan.model import ModelShape, load_architecture, shape_of
from recipe.flowrl.rules import guess


def report(config: DictConfig, gpu_name: str) -> tuple[list[str], list[str]]:
    """The lines to print, and what doesn't fit.

    Raises:
        UserError: the model or the GPU isn't known.
    """
    if gpu_name not in GPUS:
        raise UserError(f"gpu={gpu_name}: unknown{guess(gpu_name, GPUS)}; there are {', '.join(GPUS)}")
    gpu = GPUS[gpu_name]
    shape = shape_of(load_architecture(config.actor_rollout_ref.model.path), config.flowrl)
    memory = plan_memory(config, shape, gpu)
    lines, wrong = [_title(config, shape, gpu_name), *_memory_lines(memory, gpu.memory)], problems(config, memory, gpu)
    if config.critic.enable or config.algorithm.adv_estimator == "gae":
        lines.append("not counted: the critic, which takes as much as the policy without its rollout")
    if not wrong:
        lines += _duration_lines(plan_duration(config, shape, gpu, memory, Assumptions()))
    return lines, wrong


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
    for title, parts in (
        ("always", memory.resident | {"CUDA, NCCL": RUNTIME}),
        (f"in the update, {memory.worst_moment}", memory.update[memory.worst_moment]),
        ("in the rollout", memory.rollout),
        ("on each node's host", memory.host),
    ):
        lines.append(f"{title}:")
        lines += [f"  {size / 1e9:7.1f} GB  {name}" for name, size in parts.items()]
    others = {moment: sum(parts.values()) for moment, parts in memory.update.items() if moment != memory.worst_moment}
    lines.append(
        f"less in the update {', '.join(f'{moment} ({size / 1e9:.1f} GB)' for moment, size in others.items())}"
    )
    for phase, needed in memory.phases.items():
        fits = "fits" if needed <= available else "DOES NOT FIT"
        lines.append(f"{phase}: {needed / 1e9:.1f} of {available / 1e9:.0f} GB on each GPU: {fits}")
    lines.append(f"rollout server: {memory.longest_sequences} sequences of full length at once")
    return lines
