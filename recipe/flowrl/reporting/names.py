"""Metric names that both the console and the report look up, and how a pattern finds them.

A pattern is a metric name in which each ``*`` stands for any text (slashes included, since a verl data source may
hold them, as in ``openai/gsm8k``).
"""

import re
from collections.abc import Iterable
from functools import cache

REWARD = "critic/score/mean"
SOLVE_RATE = "train/solve_rate"
DISTINCT = "train/distinct_solutions"
MISSING = "train/missing_rollouts"
LOG_Z = "actor/flowrl/log_z"
GRAD_NORM = "actor/grad_norm"
SKIPPED = "actor/skipped_update"
CLIPPED = "actor/clipped_update"
TARGET_LOG_ODDS = "actor/flowrl/target_log_odds"
REFERENCE_SHARE = "actor/flowrl/reference_share"
STEP_TIME = "timing_s/step"
TRAINER_IDLE = "train/trainer_idle"
SERVERS_IDLE = "train/servers_idle"
AGE = "training/off_policy/trajectory_staleness_worst"
LAG = "train/rollout_log_ratio"
REPLAYED = "replay/share"
PROBS_DIFF_MAX = "training/rollout_probs_diff_max"

VAL_SOLVE_RATE = "val-core/*/acc/mean@*"
VAL_BEST = "val-core/*/acc/best@*/mean"
VAL_DISTINCT = "val/*/distinct_solutions"
VAL_COVERAGE = "val/*/solution_coverage"


@cache
def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile("(.+)".join(re.escape(part) for part in pattern.split("*")))


def match(pattern: str, names: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """The names that fit ``pattern``, in their given order, each with the texts its ``*`` stand for."""
    found = {name: _compiled(pattern).fullmatch(name) for name in names}
    return {name: hit.groups() for name, hit in found.items() if hit}
