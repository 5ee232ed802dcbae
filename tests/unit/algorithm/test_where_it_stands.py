"""The line on how sharp a run's target is, and what it says before a response could be right."""

from recipe.flowrl.reporting import names
from recipe.flowrl.trainer import where_it_stands

STEP = {names.REFERENCE_SHARE: 0.214, names.CLIPPED: 0.5, names.TARGET_LOG_ODDS: 3.0}


def test_it_names_odds_share_and_clipping() -> None:
    assert where_it_stands(STEP) == (
        "a right answer gains odds of e^3 in the target; of the gradient 21.4% comes from the reference; its norm was "
        "clipped in 50% of the updates"
    )


def test_a_saturated_target_is_called_so() -> None:
    assert "odds of e^337 in the target: saturated (docs/choosing_beta.md);" in where_it_stands(
        STEP | {names.TARGET_LOG_ODDS: 337.4}
    )


def test_without_rewards_that_differ_there_are_no_odds() -> None:
    line = where_it_stands({name: value for name, value in STEP.items() if name != names.TARGET_LOG_ODDS})
    assert line.startswith("of the gradient 21.4%")
