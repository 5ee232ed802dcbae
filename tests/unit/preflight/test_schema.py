"""The options that the recipe adds: Hydra has their defaults, which their rules accept, and each is documented."""

from typing import Any

import pytest
from omegaconf import OmegaConf

from recipe.flowrl.commands.configuration import note
from recipe.flowrl.common.command_line import Option
from recipe.flowrl.common.errors import UserError
from recipe.flowrl.preflight.compose import compose_run, compose_unresolved
from recipe.flowrl.preflight.options import check_options
from recipe.flowrl.preflight.schema import RULES, SEEDED_ROLLOUTS, leaves


@pytest.mark.parametrize(("name", "default", "about"), leaves())
def test_an_option_is_documented_and_its_default_accepted(name: str, default: Any, about: Option) -> None:
    assert about.doc.endswith(".") and name in note()
    assert name not in RULES or RULES[name].accepts(default)


def test_hydra_has_the_defaults() -> None:
    plain = OmegaConf.to_container(compose_unresolved([]), resolve=False)
    for name, default, _ in leaves():
        value: Any = plain
        for part in name.split("."):
            value = value[part]
        assert value == default, name


def test_deterministic_is_said_in_the_configuration_that_plan_and_doctor_see() -> None:
    grouped = "verl_ext.group_rollout.GroupAgentLoopManager"
    for deterministic, manager in ((False, grouped), (True, SEEDED_ROLLOUTS)):
        rollout = compose_run([f"deterministic={deterministic}"]).actor_rollout_ref.rollout
        assert rollout.agent.agent_loop_manager_class == manager
        assert rollout.enable_prefix_caching is not deterministic


@pytest.mark.parametrize(
    "option",
    ["agent.agent_loop_manager_class=my.Manager", "agent.agent_loop_manager_class=null", "enable_prefix_caching=true"],
)
def test_what_undoes_deterministic_is_refused(option: str) -> None:
    key = f"actor_rollout_ref.rollout.{option}"
    config = compose_run(["experiment=countdown_cpu", "deterministic=true", key])
    with pytest.raises(UserError, match=f"{key.split('=')[0]}=.*: deterministic=true sets it to .*; leave it out"):
        check_options(config)
