"""Measures how different the answers of evaluated systems are."""

from recipe.flowrl.common.command_line import Command
from recipe.flowrl.diversity.diversity_options import Options


def run(options: Options) -> None:
    """Measure, or rank what has been measured."""
    if options.ranking is not None:
        from recipe.flowrl.diversity.ranking import rank_all

        rank_all(options.evaluations, options.ranking, options.out)
    else:
        from recipe.flowrl.diversity.measuring import measure_all

        measure_all(options)


COMMAND = Command(
    Options,
    run,
    examples=(
        "outputs/evaluation/MODEL/math",
        "outputs/evaluation/MODEL/math judge=https://HOST/v1 judge_model=gpt-4o-mini judge_price=0.15,0.60",
        "EVALUATION EVALUATION ranking=correct out=ranking.json",
    ),
    notes=(
        "Writes EVALUATION/diversity.json and prints a table. What a judge has answered stays in "
        "EVALUATION/BENCHMARK/judge.jsonl and isn't asked again.",
    ),
)
