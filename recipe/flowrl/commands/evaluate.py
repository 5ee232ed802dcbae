"""Evaluates a model on benchmarks."""

from recipe.flowrl.common.command_line import Command
from recipe.flowrl.evaluate.evaluate_options import SUITES, Options


def run(options: Options) -> None:
    """Evaluate."""
    from recipe.flowrl.evaluate.evaluation import carry_out

    carry_out(options)


COMMAND = Command(
    Options,
    run,
    examples=(
        "model=outputs/math_7b/flowrl/checkpoints/global_step_200 suite=math data=DATA",
        "model=Qwen/Qwen2.5-7B suite=code server=http://HOST:8000/v1",
        "model=MODEL suite=countdown n=64 engine.gpu_memory_utilization=0.5",
    ),
    notes=(
        "Samples are kept and graded problem by problem, so the same command continues what was ended.",
        "\n".join(["The benchmarks:", *(f"  suite={suite}: {', '.join(names)}" for suite, names in SUITES.items())]),
    ),
)
