"""The studies: which variants, and how each is run."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Variant:
    """One row of a study: an algorithm and what is different from its preset.

    The same name is the same run in all studies.
    """

    name: str
    algo: str
    overrides: tuple[str, ...] = ()


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


def _named(*variants: Variant) -> dict[str, Variant]:
    return {variant.name: variant for variant in variants}


FIELD = (
    "flowrl flowrl_plus flowrl_as_released flowrl_no_is flowrl_no_log_z flowrl_vargrad gflowrl tb_raw grpo "
    "grpo_kl_matched dr_grpo dapo gspo gmpo cispo rloo reinforce_plus_plus ppo clip_cov kl_cov prorl passk"
).split()

_OWN = {
    # Half of the steps: the preset's 200 would never come, and ProRL without it is DAPO with a KL term.
    "prorl": ("algorithm.reference_reset_steps=6",),
}

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
}
