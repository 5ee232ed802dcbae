"""``plan``'s bytes of an update and of a log-prob pass against those that the allocator gave to one.

Those of verl's FSDP2 engine with FlowRL's head on one CPU rank, in bfloat16 with packed sequences and AdamW over all
tensors at once, as on GPUs. Parameters and optimizer count; vLLM, CUDA's and NCCL's own memory don't, and neither does
how the shards divide among ranks, which a unit test compares with FSDP2's on 8 and 32 fake ranks.
"""

import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.children import call
from benchmarks.configuration import compose
from benchmarks.rows import Row
from benchmarks.workload import Workload, write_model
from recipe.flowrl.common.environment import environment_of
from recipe.flowrl.reporting.console import RunConsole

TOLERANCE = 0.15
"""Of the measured, by which the planned may differ."""

_CHECKPOINTING = "actor_rollout_ref.model.enable_gradient_checkpointing=true"
_FUSED = "actor_rollout_ref.model.use_fused_kernels=true"


def _workload(layers: int = 8, hidden_size: int = 128, vocabulary: int = 1024, sequences: int = 4) -> Workload:
    """Small, since a processor without instructions for bfloat16 takes minutes for what others do in seconds."""
    return Workload(
        layers=layers,
        hidden_size=hidden_size,
        intermediate_size=4 * hidden_size,
        heads=hidden_size // 64,
        key_value_heads=2,
        vocabulary=vocabulary,
        sequences=sequences,
        prompt_tokens=128,
        response_tokens=128,
        micro_batch=sequences,
    )


_SMOLLM2 = Workload(
    layers=30,
    hidden_size=576,
    intermediate_size=1536,
    heads=9,
    key_value_heads=3,
    vocabulary=49152,
    sequences=4,
    prompt_tokens=64,
    response_tokens=64,
    micro_batch=4,
)


@dataclass(frozen=True)
class Case:
    """A model, and what differs from ``cluster=cpu``."""

    workload: Workload
    overrides: tuple[str, ...]


CASES = {
    "as cluster=1x8": Case(_workload(), (_CHECKPOINTING, _FUSED)),
    "without gradient checkpointing": Case(_workload(), (_FUSED,)),
    "without fused log-probs": Case(_workload(vocabulary=8192), (_CHECKPOINTING,)),
    "seven times the parameters": Case(_workload(layers=16, hidden_size=256, sequences=1), (_CHECKPOINTING, _FUSED)),
    "the shape of SmolLM2-135M": Case(_SMOLLM2, (_CHECKPOINTING, _FUSED)),
}
"""The worst moments of the updates: the first block's backward, the loss with all activations, the loss, and twice the
optimizer's step."""

SMALL = tuple(name for name, case in CASES.items() if case.workload != _SMOLLM2)
"""Those that take seconds."""


def measure(console: RunConsole, names: tuple[str, ...] = tuple(CASES)) -> dict[str, Any]:
    """Returns ``settings``, ``summary`` (planned / measured by case and phase) and ``samples``, all JSON; bytes."""
    env = environment_of(compose("cluster=cpu"))
    samples = {}
    for name in names:
        case = CASES[name]
        with tempfile.TemporaryDirectory(prefix="flowrl_bench_") as model, console.phase(f"plan_memory: {name}"):
            parameters = write_model(case.workload, Path(model))
            given = {"workload": asdict(case.workload), "model": model, "overrides": case.overrides}
            samples[name] = {"parameters": parameters} | call("plan_child", given, env)
    ratios = {
        name: {phase: sum(sample["planned"][phase].values()) / size for phase, size in sample["measured"].items()}
        for name, sample in samples.items()
    }
    settings = {name: asdict(CASES[name]) for name in names}
    return {
        "settings": {"cases": settings, "tolerance": TOLERANCE, "environment": env},
        "summary": ratios,
        "samples": samples,
    }


def rows(result: dict[str, Any]) -> list[Row]:
    """The table's lines."""
    lines = []
    for name, sample in result["samples"].items():
        for phase, size in sample["measured"].items():
            difference = abs(result["summary"][name][phase] - 1)
            lines.append(Row(f"{name}, {phase}: measured", size / 1e6, "MB", sample["moment"] * (phase == "update")))
            lines.append(Row(f"{name}, {phase}: plan / measured - 1", difference, target=TOLERANCE))
    return lines
