"""Which worker a configuration gets, and what no worker can do."""

import pytest

from recipe.flowrl.common.errors import UserError
from recipe.flowrl.preflight.compose import compose_run
from recipe.flowrl.worker import AdvantageWorker, FlowRLWorker, worker_class
from verl_ext.reference import MovableReferenceWorker


@pytest.mark.parametrize(
    ("algo", "worker"), [("flowrl", FlowRLWorker), ("grpo", AdvantageWorker), ("prorl", MovableReferenceWorker)]
)
def test_the_worker_of_an_algorithm(algo: str, worker: type) -> None:
    assert worker_class(compose_run([f"algo={algo}"])) is worker


@pytest.mark.parametrize("option", ["reference_reset_steps=3", "kl_matched_beta=15", "dmpo_weight=1"])
def test_flowrl_does_not_take_what_is_for_others(option: str) -> None:
    with pytest.raises(UserError, match=f"algorithm.{option}.*not for FlowRL's"):
        worker_class(compose_run(["algo=flowrl", f"algorithm.{option}"]))
