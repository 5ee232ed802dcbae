"""``algorithm.rollout_correction``: what is set has an effect, or is refused (docs/async.md says which)."""

from omegaconf import DictConfig

from recipe.flowrl.common.errors import UserError
from recipe.flowrl.common.rules import BOOLEAN, show

_CORRECTION = "algorithm.rollout_correction"
_LOG_PROBS = "actor_rollout_ref.rollout.calculate_log_probs"


def check_rollout_correction(config: DictConfig) -> list[str]:
    """Check the section; the names in it are checked where all registered ones are.

    Args:
        config: of the run, resolved.

    Returns:
        Warnings.

    Raises:
        UserError: a value that verl refuses in the first step, or that would have no effect.
    """
    given = config.algorithm.get("rollout_correction") or {}
    weight, rejection = given.get("rollout_is"), given.get("rollout_rs")
    for name in ("bypass_mode", "rollout_is_batch_normalize"):
        if not BOOLEAN.accepts(given.get(name, False)):
            raise UserError(f"{_CORRECTION}.{name}: got {show(given[name])}; allowed: {BOOLEAN.allowed}")
    if weight and not _is_bound(given.get("rollout_is_threshold"), interval=True):
        raise UserError(
            f"{_CORRECTION}.rollout_is_threshold: got {show(given.get('rollout_is_threshold'))}; allowed: a number > "
            "0, which weights are cut down to, or 'low_high', outside of which they are 0"
        )
    if rejection:
        _check_rejection(str(rejection), given.get("rollout_rs_threshold"))
    for name in ("rollout_is", "rollout_rs", "bypass_mode"):
        if given.get(name) and not config.actor_rollout_ref.rollout.calculate_log_probs:
            raise UserError(
                f"{_CORRECTION}.{name}={given[name]} needs the log-probs of the rollout: set {_LOG_PROBS}=true"
            )
    if given.get("bypass_mode"):
        _check_bypass(given)
    if config.flowrl is None or not rejection:
        return []
    if "token_" in rejection:
        raise UserError(
            f"{_CORRECTION}.rollout_rs={rejection}: it masks single tokens, so that log pi and |y| would cover the "
            "others only, another objective than FlowRL's; reject whole responses (seq_mean_k3, seq_sum_k1, ...)"
        )
    return [f"{_CORRECTION}.rollout_rs={rejection}: rejected responses take no part in the update"]


def _check_bypass(given: DictConfig) -> None:
    """In this mode verl's V1 trainer computes neither weights nor rejections, and has one loss."""
    for name in ("rollout_is", "rollout_rs"):
        if given.get(name):
            raise UserError(
                f"{_CORRECTION}.{name}={given[name]} has no effect with {_CORRECTION}.bypass_mode=true, where the "
                "rollout's policy is pi_old, and the loss's own ratio to it corrects: unset one"
            )
    if given.get("loss_type", "ppo_clip") != "ppo_clip":
        raise UserError(
            f"{_CORRECTION}.loss_type={given.loss_type} has no effect in verl 0.9's V1 trainer: leave it out, and "
            "choose the loss with algo=NAME"
        )


def _check_rejection(names: str, threshold: object) -> None:
    options = [name.strip() for name in names.split(",") if name.strip()]
    bounds = [bound.strip() for bound in str(threshold).split(",")] if threshold is not None else []
    if len(bounds) not in (1, len(options)):
        raise UserError(
            f"{_CORRECTION}.rollout_rs_threshold: got {show(threshold)} for rollout_rs={names}; allowed: one bound, or "
            f"{len(options)}, separated by commas"
        )
    for option, bound in zip(options, bounds * len(options) if len(bounds) == 1 else bounds, strict=True):
        interval = option.endswith("k1")
        if not _is_bound(bound, interval):
            wanted = "a number > 0 or 'low_high', ratios of probabilities" if interval else "a number > 0"
            raise UserError(f"{_CORRECTION}.rollout_rs_threshold: got {show(bound)} for {option}; allowed: {wanted}")


def _is_bound(value: object, interval: bool) -> bool:
    """Whether it is a positive number or, where an ``interval`` may be given, two of them in order."""
    if value is None or isinstance(value, bool):
        return False
    parts = str(value).split("_")
    try:
        numbers = [float(part) for part in parts]
    except ValueError:
        return False
    return len(numbers) <= 1 + interval and all(0 < number < float("inf") for number in numbers) and (
        numbers == sorted(numbers)
    )  # fmt: skip
