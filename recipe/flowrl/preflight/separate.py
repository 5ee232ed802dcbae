"""What the asynchronous modes ask for, above all rollout servers on resources of their own (docs/async.md)."""

from omegaconf import DictConfig, OmegaConf

from recipe.flowrl.common.errors import UserError
from recipe.flowrl.common.rules import COUNT, show

OWN_SOCKETS, CHANNEL = "own_sockets", "verl_ext.weight_stream"
"""``verl_ext.weight_stream.BACKEND``, and its module, which the checks don't import: it needs verl."""

_MODE, _ROLLOUT, _MODEL = "trainer.v1.trainer_mode", "actor_rollout_ref.rollout", "actor_rollout_ref.model"
_SEPARATE = f"{_MODE}=separate_async"
_SAMPLER = "trainer.v1.sampler"


def is_separate(config: DictConfig) -> bool:
    """Whether the rollout servers have resources of their own."""
    return config.trainer.v1.trainer_mode == "separate_async"


def servers_ranks(config: DictConfig) -> int:
    """GPUs (on a CPU: processes that stand for one) of the rollout's own; 0 where it shares the trainer's."""
    rollout = config.actor_rollout_ref.rollout
    return rollout.nnodes * rollout.n_gpus_per_node if is_separate(config) else 0


def refuse_separate(config: DictConfig, who: str) -> None:
    """Refuse servers with resources of their own, for a command, ``who``, that doesn't count those.

    Raises:
        UserError: the run has them.
    """
    if is_separate(config):
        raise UserError(
            f"{_SEPARATE}: {who} counts the trainer's GPUs only, and the rollout's own come on top: docs/async.md"
        )


def check_mode(config: DictConfig) -> None:
    """Check what belongs to the trainer's mode, in the words of the preset ``mode=async``.

    Raises:
        UserError: something is missing, contradicts the mode, or has no effect in it.
    """
    mode = config.trainer.v1.trainer_mode
    if not is_separate(config) and not config.actor_rollout_ref.hybrid_engine:
        raise UserError(
            f"actor_rollout_ref.hybrid_engine=false has no effect with {_MODE}={mode}: leave it out, or set mode=async"
        )
    if mode == "sync":
        return
    if config.deterministic:
        raise UserError(
            f"deterministic=true doesn't work with {_MODE}={mode}, where the order of events decides which policy "
            "draws a response and which batch it gets into: leave it out, or set mode=sync"
        )
    _check_sampler(config)
    if is_separate(config):
        _check_channel(config)
        _check_separate(config)


def _check_sampler(config: DictConfig) -> None:
    oldest, strategy = (config.trainer.v1.sampler[f"max_off_policy_{name}"] for name in ("threshold", "strategy"))
    if oldest is not None and not COUNT.accepts(oldest):
        raise UserError(
            f"{_SAMPLER}.max_off_policy_threshold: got {show(oldest)}; allowed: {COUNT.allowed}, or null (any age)"
        )
    if strategy not in ("drop", "wait"):
        raise UserError(f"{_SAMPLER}.max_off_policy_strategy: got {show(strategy)}; allowed: 'drop' | 'wait'")


def _check_channel(config: DictConfig) -> None:
    """The servers, and the way of the weights to them."""
    rollout = config.actor_rollout_ref.rollout
    for name in ("nnodes", "n_gpus_per_node"):
        if not COUNT.accepts(rollout[name]):
            raise UserError(
                f"{_ROLLOUT}.{name}={rollout[name]}: {_SEPARATE} needs resources of the rollout's own: set it to 1 or "
                "more, beside trainer.nnodes and trainer.n_gpus_per_node, or set mode=async"
            )
    engine, on_cpu = rollout.checkpoint_engine, config.trainer.device == "cpu"
    if engine.backend == "naive" or (on_cpu and engine.backend != OWN_SOCKETS):
        why = "needs GPUs" if engine.backend != "naive" else "takes servers that share the trainer's resources"
        raise UserError(
            f"{_ROLLOUT}.checkpoint_engine.backend={engine.backend} {why}: with {_SEPARATE} set it to "
            f"{OWN_SOCKETS if on_cpu else 'nccl'}, or set mode=async"
        )
    if engine.custom_backend_module is None:
        raise UserError(
            f"{_ROLLOUT}.checkpoint_engine.custom_backend_module=null: the processes that take weights would "
            f"listen elsewhere than the servers: set it to {CHANNEL}, or to a module that imports it"
        )
    nodes = max(config.trainer.nnodes, rollout.nnodes)
    if engine.backend == OWN_SOCKETS and nodes > 1:
        raise UserError(
            f"{_ROLLOUT}.checkpoint_engine.backend={OWN_SOCKETS} works on one machine, and this run has {nodes} nodes: "
            "set it to nccl"
        )


def _check_separate(config: DictConfig) -> None:
    model = config.actor_rollout_ref.model
    adapters = {
        "lora_rank": model.lora_rank,
        "lora.rank": model.lora.rank,
        "lora_adapter_path": model.lora_adapter_path,
    }
    for name, given in adapters.items():
        if given:
            raise UserError(
                f"{_MODEL}.{name}={given}: verl sends no LoRA adapter to servers of their own (its issue 7495), which "
                "would go on drawing from the base model: unset it, or set mode=sync"
            )
    if config.actor_rollout_ref.hybrid_engine and config.trainer.device == "cpu":
        raise UserError(
            f"actor_rollout_ref.hybrid_engine=true with {_SEPARATE}: servers beside the trainer sleep while it trains, "
            "and vLLM's sleep mode needs a GPU: set it to false, or set mode=async"
        )
    if OmegaConf.select(config, "reward.reward_model.enable") and not config.reward.reward_model.enable_resource_pool:
        raise UserError(
            f"reward.reward_model.enable_resource_pool=false: with {_SEPARATE} the rollout never pauses to make room "
            "for a reward model: set it to true"
        )
