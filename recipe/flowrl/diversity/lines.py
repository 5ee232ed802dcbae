"""What the command prints of a ``diversity.json``."""

from typing import Any

from recipe.flowrl.diversity.evaluations import POPULATIONS
from recipe.flowrl.diversity.measures import MEASURES


def lines(result: dict[str, Any]) -> list[str]:
    """The table for the terminal: correct answers, at the largest number of draws that half of the problems allow."""
    rows = []
    for name, benchmark in result["benchmarks"].items():
        m = common_draws(benchmark["summary"]["correct"], benchmark["problems"])
        rows.append(f"{name}: {POPULATIONS['correct']}" + (f", {m} of each problem" if m else ": too few to compare"))
        for measure_name, by_draws in benchmark["summary"]["correct"].items():
            if m in by_draws:
                rows.append(f"  {MEASURES[measure_name].title:<32} {_with_interval(by_draws[m])}")
        if "judge" in benchmark:
            rows += _judge_lines(benchmark["judge"])
    return rows


def common_draws(summary: dict[str, Any], problems: int) -> str | None:
    """The largest m for which at least half of the problems that have two answers have m; None if none has two."""
    by_draws = next(iter(summary.values()), {})
    least = 0.5 * max((entry["problems"] for entry in by_draws.values()), default=0)
    fitting = [int(m) for m, entry in by_draws.items() if entry["problems"] >= least]
    return str(max(fitting)) if fitting else None


def _judge_lines(judge: dict[str, Any]) -> list[str]:
    rows = []
    for population, title in POPULATIONS.items():
        found = judge["populations"][population]
        score = _with_interval(found) if "value" in found else "no score"
        errors = ", ".join(f"{count} x {what}" for what, count in found["errors"].items()) or "none"
        agreed = found["agreement"]
        repeats = "" if agreed["exact"] is None else f"; repeats agree {agreed['exact']:.0%}"
        repeats += "" if agreed["alpha"] is None else f", alpha {agreed['alpha']:.2f}"
        rows.append(
            f"  judge, {title:<25} {score}; errors: {errors}; {found['contradict_themselves']} contradict themselves; "
            f"{found['too_few_responses']} problems with too few{repeats}"
        )
    cost = "" if judge["cost"] is None else f", {judge['cost']:.4f} in the price's currency"
    return [*rows, f"  judge: {judge['prompt_tokens']} + {judge['completion_tokens']} tokens{cost}"]


def _with_interval(entry: dict[str, Any]) -> str:
    low, high = entry["interval"]
    return f"{entry['value']:.3f} [{low:.3f}, {high:.3f}], {entry['problems']} problems"
