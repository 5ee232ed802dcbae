"""The studies: which variants, and how each is run."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Variant:
    """One row of a study: an algorithm and what is different from its preset.

    The same name is the same run in all studies of an experiment. Of exact studies alone: ``stack``, through the whole
    stack, and ``staleness``, so many steps old is the policy that draws each batch.
    """

    name: str
    algo: str
    overrides: tuple[str, ...] = ()
    stack: bool = False
    staleness: int = 0

    def __post_init__(self) -> None:
        if self.stack and self.staleness:
            raise ValueError(f"{self.name}: in the stack trainer.v1.trainer_mode decides how old the data are")


@dataclass(frozen=True)
class Study:
    """Variants that share everything else.

    Attributes:
        experiment: of ``configs/experiment/``.
        variants: name -> variant.
        seeds: of data order and of the head's weights; the rollouts are drawn anew in each run.
        lrs: learning rates that each variant is tried with on the first seed, if there are several; the one with the
            best training solve rate is used for all.
        steps: training steps of each run.
        puzzles: held-out puzzles to evaluate on, from the first.
        samples: answers to each, at each temperature.
        jobs: runs side by side.
        overrides: of every run.
    """

    experiment: str
    variants: dict[str, Variant]
    seeds: tuple[int, ...] = (0, 1, 2)
    lrs: tuple[float, ...] = (1e-4,)  # of 1e-4, 2e-4 and 4e-4 the best, docs/results.md
    steps: int = 12
    puzzles: int = 128
    samples: int = 64
    jobs: int = 1
    overrides: tuple[str, ...] = field(default=())


@dataclass(frozen=True)
class ExactStudy(Study):
    """A study whose measures are exact, and whose runs take one process each (:mod:`.exact_run`).

    A variant may go through the stack instead (:mod:`.stack_run`).

    Attributes:
        train_puzzles: of the training file, from the first, seen again and again.
        every: steps between two evaluations.
        lrs: each variant is run with each.
        samples: answers to each puzzle, for what can't be scored only.
    """

    train_puzzles: int = 64
    every: int = 10


def _named(*variants: Variant) -> dict[str, Variant]:
    return {variant.name: variant for variant in variants}


FIELD = (
    "flowrl flowrl_plus flowrl_as_released flowrl_no_is flowrl_no_log_z flowrl_vargrad gflowrl tb_raw tb_replay grpo "
    "grpo_kl_matched dr_grpo dapo gspo gmpo cispo rloo reinforce_plus_plus ppo clip_cov kl_cov prorl passk "
    "flowrl_with_ppo reinforce_plus_plus_baseline maxrl dmpo dppo_tv dppo_kl sapo dro"
).split()

_STALE = {
    "grpo": ("grpo", ()),
    # The ratio of PPO's loss is that to the policy that drew the batch.
    "grpo_bypass": ("grpo", ("algorithm.rollout_correction.bypass_mode=true",)),
    "grpo_kl_matched_0.3": ("grpo_kl_matched", ("algorithm.kl_matched_beta=0.3",)),
    "flowrl_beta_0.3": ("flowrl", ("flowrl.beta=0.3",)),
    "flowrl_plus_beta_3": ("flowrl_plus", ("flowrl.beta=3",)),
}

_OWN = {
    # Half of the steps: the preset's 200 would never come, and ProRL without it is DAPO with a KL term.
    "prorl": ("algorithm.reference_reset_steps=6",),
}

_ELSEWHERE = ("grpo", "flowrl", "flowrl_plus", "tb_replay", "grpo_kl_matched", "prorl")
"""Presets that ``repeated`` names itself, most of them with values of its own."""

# Four updates a step: on two cores the rollouts cost most, and the paper has 16.
_OVERRIDES = ("actor_rollout_ref.actor.ppo_mini_batch_size=8",)

STUDIES = {
    "countdown": Study(
        "countdown_cpu", _named(*[Variant(name, name, _OWN.get(name, ())) for name in FIELD]), overrides=_OVERRIDES
    ),
    "ablations": Study(
        "countdown_cpu",
        _named(
            Variant("flowrl", "flowrl"),
            *[Variant(f"beta_{beta}", "flowrl", (f"flowrl.beta={beta}",)) for beta in (5, 10, 30)],
            *[
                Variant(name, name)
                for name in ("flowrl_no_is", "flowrl_no_log_z", "flowrl_vargrad", "flowrl_as_released")
            ],
            Variant("log_z_constant", "flowrl_no_log_z", ("flowrl.partition_constant=1.0",)),
            *[Variant(f"depth_{depth}", "flowrl", (f"flowrl.partition_depth={depth}",)) for depth in (1, 5)],
        ),
        overrides=_OVERRIDES,
    ),
    "repeated": ExactStudy(
        "countdown_cpu",
        _named(
            Variant("grpo", "grpo"),
            Variant("flowrl", "flowrl"),
            *[Variant(f"flowrl_beta_{beta}", "flowrl", (f"flowrl.beta={beta}",)) for beta in (1, 0.3)],
            *[Variant(f"flowrl_plus_beta_{beta}", "flowrl_plus", (f"flowrl.beta={beta}",)) for beta in (3, 5, 7)],
            Variant("tb_replay", "tb_replay"),
            *[
                Variant(f"grpo_kl_matched_{beta}", "grpo_kl_matched", (f"algorithm.kl_matched_beta={beta}",))
                for beta in (0.3, 1)
            ],
            # The optimum of the reward with this KL term is flowrl_plus's target at beta = 3.
            Variant("rloo_kl_matched_3", "rloo", (f"algorithm.kl_ctrl.kl_coef={1 / 3:.4f}",)),
            Variant("grpo_entropy", "grpo", ("actor_rollout_ref.actor.entropy_coeff=0.01",)),
            # Half of the steps, as in the other study.
            Variant("prorl_reset_75", "prorl", ("algorithm.reference_reset_steps=75",)),
            *[Variant(name, name) for name in FIELD if name not in _ELSEWHERE],
        ),
        steps=150,
        samples=16,
    ),
    # Another task.
    "change": ExactStudy(
        "change_cpu",
        _named(
            Variant("grpo", "grpo"),
            Variant("flowrl", "flowrl"),
            Variant("flowrl_beta_0.3", "flowrl", ("flowrl.beta=0.3",)),
            *[Variant(f"flowrl_plus_beta_{beta}", "flowrl_plus", (f"flowrl.beta={beta}",)) for beta in (3, 5)],
            Variant("grpo_kl_matched_0.3", "grpo_kl_matched", ("algorithm.kl_matched_beta=0.3",)),
            # The optimum of the reward with this KL term is flowrl_plus's target at beta = 5.
            Variant("rloo_kl_matched_5", "rloo", ("algorithm.kl_ctrl.kl_coef=0.2",)),
        ),
        steps=150,
        samples=16,
    ),
    # How old may the data be? Steps are those that train. Without staleness they are runs of study=repeated.
    "stale": ExactStudy(
        "countdown_cpu",
        _named(
            *[
                Variant(f"{name}_stale_{staleness}", algo, overrides, staleness=staleness)
                for staleness in (8, 32)
                for name, (algo, overrides) in _STALE.items()
            ]
        ),
        steps=50,
        samples=16,
    ),
    # Is one process worth as much as the stack? The same runs by both.
    "agreement": ExactStudy(
        "countdown_cpu",
        _named(
            *[
                Variant(name + "_stack" * stack, algo, overrides, stack)
                for name, algo, overrides in (
                    ("grpo", "grpo", ()),
                    ("flowrl_beta_0.3", "flowrl", ("flowrl.beta=0.3",)),
                )
                for stack in (False, True)
            ]
        ),
        steps=50,
        samples=16,
    ),
}
