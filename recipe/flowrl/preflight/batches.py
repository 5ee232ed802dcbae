"""Batch sizes and parallel sizes that have to divide one another."""

from collections.abc import Iterable
from math import gcd, prod

from omegaconf import DictConfig, OmegaConf

from recipe.flowrl.common.errors import UserError
from recipe.flowrl.preflight.separate import is_separate, servers_ranks
from verl_ext.replay_memory import earlier_of

_TRAIN = "data.train_batch_size"
_N = "actor_rollout_ref.rollout.n"
_MINI = "actor_rollout_ref.actor.ppo_mini_batch_size"
_DYNAMIC = "actor_rollout_ref.actor.use_dynamic_bsz"  # the log-prob steps' options follow it


def check_batches(config: DictConfig) -> None:
    """Check that batches divide into mini-batches, ranks and micro-batches, and ranks into rollout servers.

    verl cuts ``train_batch_size * n`` sequences into mini-batches of ``ppo_mini_batch_size * n``, each of which it
    spreads over the data-parallel ranks, where it is cut into micro-batches.

    Raises:
        UserError: something doesn't divide; says which value would do.
    """
    ranks = config.trainer.nnodes * config.trainer.n_gpus_per_node
    _check_rollout_parallelism(config, ranks)
    train, mini = config.data.train_batch_size, config.actor_rollout_ref.actor.ppo_mini_batch_size
    n = config.actor_rollout_ref.rollout.n
    if mini > train or train % mini:
        raise UserError(f"{_MINI}={mini} doesn't divide {_TRAIN}={train}: set it to {_nearest(_divisors(train), mini)}")
    if is_separate(config):
        steps = config.trainer.v1.separate_async.parameter_sync_step
        if train != steps * mini:
            raise UserError(
                f"{_TRAIN}={train} isn't trainer.v1.separate_async.parameter_sync_step={steps} times {_MINI}={mini}, "
                f"as the mode separate_async wants it: set it to {steps * mini}"
            )
        train = mini  # it takes one mini-batch at a time through all the steps
    _check_ranks(config, ranks, train * n, mini * n)
    if config.algorithm.replay.share is not None:
        _check_replay(config, ranks, train)


def _check_rollout_parallelism(config: DictConfig, ranks: int) -> None:
    rollout = config.actor_rollout_ref.rollout
    where = "trainer.nnodes * trainer.n_gpus_per_node"
    if is_separate(config):
        ranks, where = servers_ranks(config), "actor_rollout_ref.rollout.nnodes * its n_gpus_per_node"
    names = ("tensor_model_parallel_size", "data_parallel_size", "pipeline_model_parallel_size")
    size = prod(rollout[name] for name in names)
    if ranks % size:
        given = " * ".join(f"{name}={rollout[name]}" for name in names if rollout[name] > 1)
        raise UserError(
            f"actor_rollout_ref.rollout.{given} doesn't divide the {ranks} ranks "
            f"({where}): set the product to {_nearest(_divisors(ranks), size)}"
        )


def _check_ranks(config: DictConfig, ranks: int, train_sequences: int, mini_sequences: int) -> None:
    actor, n = config.actor_rollout_ref.actor, config.actor_rollout_ref.rollout.n
    shards = actor.ulysses_sequence_parallel_size
    if ranks % shards:
        raise UserError(
            f"actor_rollout_ref.actor.ulysses_sequence_parallel_size={shards} doesn't divide the {ranks} ranks: "
            f"set it to {_nearest(_divisors(ranks), shards)}"
        )
    replicas = ranks // shards
    if mini_sequences % replicas:
        mini, step = mini_sequences // n, replicas // gcd(n, replicas)
        fitting = [size for size in _divisors(config.data.train_batch_size) if size % step == 0]
        advice = f"{_MINI} to {_nearest(fitting, mini)}" if fitting else f"{_MINI} and {_TRAIN} to {step}"
        raise UserError(
            f"{_MINI}={mini} * {_N}={n} sequences don't divide among {replicas} data-parallel ranks: set {advice}"
        )
    if not actor.use_dynamic_bsz and train_sequences % ranks:
        raise UserError(
            f"{_TRAIN}={train_sequences // n} * {_N}={n} sequences don't divide among {ranks} ranks: "
            f"set {_TRAIN} to a multiple of {ranks // gcd(n, ranks)}"
        )
    _check_micro_batches(config, shards, train_sequences // replicas, mini_sequences // replicas)


def _check_micro_batches(config: DictConfig, shards: int, per_rank: int, mini_per_rank: int) -> None:
    """``per_rank``, ``mini_per_rank``: a rank's sequences in a batch and in a mini-batch."""
    worker = config.actor_rollout_ref
    if worker.actor.use_dynamic_bsz != worker.rollout.log_prob_use_dynamic_bsz:
        raise UserError(
            f"actor_rollout_ref.rollout.log_prob_use_dynamic_bsz={worker.rollout.log_prob_use_dynamic_bsz} differs "
            f"from {_DYNAMIC}={worker.actor.use_dynamic_bsz}: leave it out, then it is the same"
        )
    longest = config.data.max_prompt_length + config.data.max_response_length
    tokens = -(-longest // shards)
    _check_step(worker, "actor.ppo", worker.actor.use_dynamic_bsz, mini_per_rank, tokens)
    _check_step(worker, "rollout.log_prob", worker.rollout.log_prob_use_dynamic_bsz, per_rank, tokens)
    if needs_reference(config):
        _check_step(worker, "ref.log_prob", worker.ref.log_prob_use_dynamic_bsz, per_rank, tokens)


def _check_replay(config: DictConfig, ranks: int, train: int) -> None:
    """Some of each mini-batch are replayed, not all; the reference's pass is over the new ones of ``train`` alone."""
    replay, worker = config.algorithm.replay, config.actor_rollout_ref
    mini = worker.actor.ppo_mini_batch_size
    earlier = earlier_of(mini, replay.share)
    if not 0 < earlier < mini:
        raise UserError(
            f"algorithm.replay.share={replay.share}: of a mini-batch of {_MINI}={mini} prompts that is {earlier}: set "
            f"it so that some are replayed and some are new, or {_MINI} higher"
        )
    needed = config.data.train_batch_size // mini * earlier
    if replay.size < needed:
        raise UserError(
            f"algorithm.replay.size={replay.size}: a step replays {needed} groups (algorithm.replay.share="
            f"{replay.share} of {_TRAIN}={config.data.train_batch_size}): set it to {needed} or more"
        )
    new = train // mini * (mini - earlier) * worker.rollout.n
    replicas = ranks // worker.actor.ulysses_sequence_parallel_size
    if new % replicas:
        raise UserError(
            f"algorithm.replay.share={replay.share}: a step's {new} new sequences don't divide among {replicas} "
            "data-parallel ranks: choose another share"
        )
    _check_step(worker, "ref.log_prob", worker.ref.log_prob_use_dynamic_bsz, new // replicas, 0)


def _check_step(worker: DictConfig, prefix: str, dynamic: bool, sequences: int, tokens: int) -> None:
    """Check how one pass over the model is cut into micro-batches.

    Args:
        worker: ``actor_rollout_ref``.
        prefix: beginning of the pass's options in it.
        dynamic: whether it is cut by tokens.
        sequences: of a rank in this pass.
        tokens: a rank's part of the longest sequence.
    """
    path = f"actor_rollout_ref.{prefix}"
    global_size, size, limit = (
        OmegaConf.select(worker, f"{prefix}_{name}")
        for name in ("micro_batch_size", "micro_batch_size_per_gpu", "max_token_len_per_gpu")
    )
    if global_size is not None:
        raise UserError(
            f"{path}_micro_batch_size={global_size} is no longer used by verl: set {path}_micro_batch_size_per_gpu"
        )
    if dynamic and limit < tokens:
        raise UserError(
            f"{path}_max_token_len_per_gpu={limit} is less than one sequence of data.max_prompt_length + "
            f"data.max_response_length tokens: set it to {tokens} or more"
        )
    if not dynamic and size is None:
        raise UserError(
            f"{path}_micro_batch_size_per_gpu isn't set: set it to a divisor of {sequences}, or turn on {_DYNAMIC}"
        )
    if not dynamic and sequences % size:
        raise UserError(
            f"{path}_micro_batch_size_per_gpu={size} doesn't divide the {sequences} sequences of a rank: "
            f"set it to {_nearest(_divisors(sequences), size)}, or turn on {_DYNAMIC}"
        )


def needs_reference(config: DictConfig) -> bool:
    """Whether the run computes log-probs of the reference policy: FlowRL always does."""
    kl_options = ("algorithm.use_kl_in_reward", "actor_rollout_ref.actor.use_kl_loss")
    return config.flowrl is not None or any(OmegaConf.select(config, key) for key in kl_options)


def _divisors(number: int) -> list[int]:
    return [divisor for divisor in range(1, number + 1) if number % divisor == 0]


def _nearest(candidates: Iterable[int], wanted: int) -> int:
    return min(candidates, key=lambda candidate: abs(candidate - wanted))
