"""From the options of the exact test to a run's configuration: the same target for every algorithm that has one."""

from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig

from recipe.flowrl.common.errors import UserError
from recipe.flowrl.common.project import CONFIG_DIR
from recipe.flowrl.preflight import compose
from recipe.flowrl.tasks.modes import data as modes
from recipe.flowrl.tasks.modes import endings

TASKS = ("modes", "endings")
REWARDS = ("raw", "group_normalized")
MODES_STRENGTH = 6.0
"""Of the target pi_ref exp(6 reward): FlowRL's beta of 3 with answers of 2 tokens."""
ENDINGS_BETA = 3.0
PARTITION_LR = "flowrl.partition_lr=1e-2"


@dataclass(frozen=True)
class Setup:
    """What is asked of a run.

    Attributes:
        algo: the algorithm's name.
        reward: as it is, or normalised in each group where the algorithm can do with both.
        task: one of :data:`TASKS`.
        beta: FlowRL's, and the inverse of the KL's coefficient in the controls; None: the task's.
        staleness: steps that a batch waits before it is trained on.

    Raises:
        UserError: unknown names.
    """

    algo: str
    reward: str = "raw"
    task: str = "modes"
    beta: float | None = None
    staleness: int = 0

    def __post_init__(self) -> None:
        for name, known in (("algo", algorithms()), ("reward", REWARDS), ("task", TASKS)):
            if getattr(self, name) not in known:
                raise UserError(f"{name}={getattr(self, name)}: unknown; there are {', '.join(known)}")

    @property
    def strength(self) -> float:
        """Of the target pi_ref exp(strength * reward), for algorithms whose own isn't known."""
        if self.task == "modes":
            return MODES_STRENGTH if self.beta is None else self.beta * modes.LENGTH
        return ENDINGS_BETA if self.beta is None else self.beta


def algorithms() -> list[str]:
    """What ``algo`` may be."""
    return sorted(path.stem for path in (CONFIG_DIR / "algo").glob("*.yaml"))


def overrides(setup: Setup) -> list[str]:
    """The Hydra overrides of a run beside ``experiment=distribution algo=ALGO``.

    FlowRL's variants get the reward as it is and, of :data:`modes`, a beta with which their fixed points are the same
    (twice as large where the log-probs aren't divided by the length of 2). With ``reward="group_normalized"`` and no
    beta they are as published. The optimum of the reward with a KL term of coefficient 1 / strength is the same
    distribution: ``grpo_kl_matched`` and ``rloo`` get that. The others are left as they are: none of them says that it
    aims at this target.
    """
    extra = _of_task(setup)
    config = compose.compose_run([f"algo={setup.algo}"])
    normalised = setup.reward == "group_normalized"
    if config.flowrl is not None:
        if normalised and setup.beta is None and setup.task == "modes":
            return extra
        whole = config.flowrl.length_normalization != "log_probs"
        estimator = "grpo" if normalised else "raw_reward"
        return [*extra, f"algorithm.adv_estimator={estimator}", f"flowrl.beta={_beta(setup, whole)}", PARTITION_LR]
    if config.algorithm.kl_matched_beta is not None:
        beta = f"algorithm.kl_matched_beta={_beta(setup, whole=False)}"
        return [*extra, beta, f"algorithm.norm_adv_by_std_in_grpo={str(normalised).lower()}"]
    if setup.algo == "rloo":
        return [*extra, f"algorithm.kl_ctrl.kl_coef={1 / setup.strength}"]
    if config.algorithm.reference_reset_steps is not None:
        return [*extra, "algorithm.reference_reset_steps=30"]  # within the run
    return extra


def _beta(setup: Setup, whole: bool) -> float:
    """Of an objective that divides its log-probs by the length, or the whole of its residual or nothing."""
    per_token = setup.task == "modes" and not whole
    return setup.strength / modes.LENGTH if per_token else setup.strength


def _of_task(setup: Setup) -> list[str]:
    if setup.task == "modes":
        return []
    return [
        f"data.max_response_length={endings.LENGTH}",
        "actor_rollout_ref.rollout.ignore_eos=false",
        "actor_rollout_ref.model.path=${cache_dir}/endings_qwen2",
    ]


def compose_run(setup: Setup, extra: list[str]) -> DictConfig:
    """The whole configuration, resolved."""
    return compose.compose_run(["experiment=distribution", f"algo={setup.algo}", *overrides(setup), *extra])


def ensure(setup: Setup, config: DictConfig, console: Any) -> Any:
    """The enumeration of the task's answers, whose model is made if it isn't there."""
    from pathlib import Path

    from recipe.flowrl.distribution.exact import of_endings, of_modes
    from recipe.flowrl.prepare.own_tasks import make
    from recipe.flowrl.tasks.modes.enumerable_qwen2 import ensure_model

    cache = Path(config.cache_dir)
    if setup.task == "modes":
        return of_modes(make("enumerable_qwen2", cache, console))
    return of_endings(ensure_model(cache / "endings_qwen2", endings.SYMBOLS))
