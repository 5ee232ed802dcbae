"""The training loop in one process: rollouts, advantages, updates."""

import copy
from collections import deque
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForTokenClassification, PreTrainedModel
from verl.trainer.ppo.rollout_corr_helper import compute_rollout_correction_weights
from verl.utils.config import omega_conf_to_dataclass
from verl.utils.metric.utils import Metric
from verl.utils.torch_functional import get_constant_schedule_with_warmup, get_cosine_schedule_with_warmup
from verl.workers.config.optimizer import build_optimizer
from verl.workers.utils.losses import ppo_loss, value_loss

from recipe.flowrl.config import FlowRLConfig, check_replay
from recipe.flowrl.one_process import advantages
from recipe.flowrl.one_process.batch import Batch, concatenate
from recipe.flowrl.one_process.policy import Output, prompt_state, read, values
from recipe.flowrl.one_process.task import PromptOrder, Task
from recipe.flowrl.partition import LogPartition
from recipe.flowrl.rollout_weights import ROLLOUT_WEIGHTS
from recipe.flowrl.tasks.sampling import generate, positions
from recipe.flowrl.worker import flowrl_worker_loss
from verl_ext.replay_memory import ReplayConfig, ReplayMemory

_DREW = "rollout_log_probs"
GROUPS_WITH_SIGNAL = 1e-6
"""Least standard deviation of a group's rewards for dynamic sampling (DAPO) to keep it."""
MOST_DRAWS = 10
"""Batches that dynamic sampling draws at most to fill one."""


class Trainer:
    """Trains a policy on a task as a run's configuration says.

    ``samples`` counts the rollouts, ``policy`` is what is trained. A mini-batch is one micro-batch.

    Args:
        config: a run's, composed.
        task: what is trained on.
        staleness: so many steps old is the policy that drew a batch. The first steps only draw.
    """

    def __init__(self, config: DictConfig, task: Task, staleness: int = 0) -> None:
        self.config, self.task, self.staleness = config, task, staleness
        self.algorithm, rollout = config.algorithm, config.actor_rollout_ref.rollout
        self.actor = omega_conf_to_dataclass(config.actor_rollout_ref.actor)
        self.rollouts, self.temperature = rollout.n, rollout.temperature
        self.seed = config.data.get("seed") or 0
        self.steps_done = self.samples = 0
        self.order = PromptOrder(len(task.prompt_ids), self.seed)
        self.waiting: deque[Batch] = deque()
        self.policy: PreTrainedModel = AutoModelForCausalLM.from_pretrained(task.model_dir, dtype=torch.float32)
        self.reference: PreTrainedModel = copy.deepcopy(self.policy).requires_grad_(False)
        self.flowrl = (
            None if config.flowrl is None else FlowRLConfig.from_mapping(OmegaConf.to_container(config.flowrl))
        )
        check_replay(self.algorithm, self.flowrl)
        self.replay: ReplayMemory[Batch] | None = None
        if self.algorithm.replay.share is not None:
            self.replay = ReplayMemory(ReplayConfig(**self.algorithm.replay, seed=self.seed))
        groups: list[dict[str, Any]] = [{"params": list(self.policy.parameters())}]
        self.head = self.critic = None
        if self.flowrl is not None and self.flowrl.partition == "learned":
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(self.actor.fsdp_config.seed + self.seed)
                self.head = LogPartition(self.policy.config.hidden_size, self.flowrl)
            own = {"lr": self.flowrl.partition_lr, "weight_decay": self.flowrl.partition_weight_decay}
            own = {name: value for name, value in own.items() if value is not None}
            groups.append({"params": list(self.head.parameters()), **own})
        self.optimizers = [build_optimizer(groups, self.actor.optim)]
        if self.algorithm.adv_estimator == "gae":
            self.critic_config = omega_conf_to_dataclass(config.critic)
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(self.seed)
                self.critic = AutoModelForTokenClassification.from_pretrained(
                    task.model_dir, dtype=torch.float32, num_labels=1
                )
            self.optimizers.append(build_optimizer(self.critic.parameters(), self.critic_config.optim))
        self.schedules = [self._schedule(optimizer) for optimizer in self.optimizers]

    def step(self) -> dict[str, float]:
        """Draw rollouts and train on those whose turn it is.

        Returns:
            ``reward`` and ``kl`` (log pi/pi_ref, nats a sequence), means over the rollouts trained on, ``grad_norm``
            before clipping, the largest of the step, ``clipped``, the share of its updates that were clipped; and what
            the loss reports, means over the updates. With replay ``replay_share`` of the rollouts, and in steps with
            replayed ones ``replay_age`` in steps and ``replay_reward``, their means. Empty where there is nothing to
            train on yet.
        """
        self.steps_done += 1
        torch.manual_seed(self.seed * 1_000_003 + self.steps_done)
        self._move_reference()
        replayed = self._replayed_prompts()
        enough = self.replay is not None and len(self.replay) >= replayed
        self.waiting.append(self._draw(self.config.data.train_batch_size - (replayed if enough else 0)))
        if len(self.waiting) <= self.staleness:
            return {}
        batch, said_of_replay = self._with_earlier(self.waiting.popleft())
        self._prepare(batch)
        said: dict[str, list[float]] = {}
        size = self.actor.ppo_mini_batch_size * self.rollouts
        for _ in range(self.actor.ppo_epochs):
            for rows in torch.arange(len(batch)).split(size):
                for name, value in self._update(batch.rows(rows)).items():
                    said.setdefault(name, []).append(value)
        for schedule in self.schedules:
            schedule.step()
        log_ratio = ((batch.columns["old_log_probs"] - batch.columns["ref_log_prob"]) * batch.mask).sum(-1)
        return {name: float(np.mean(found)) for name, found in said.items()} | {
            "reward": float(batch.reward.mean()),
            "kl": float(log_ratio.mean()),
            "grad_norm": max(said["grad_norm"]),
            **said_of_replay,
        }

    @torch.no_grad()
    def log_z(self) -> torch.Tensor | None:
        """(P,) what the head says of each prompt; None without a head."""
        if self.head is None:
            return None
        ids, mask = self.task.prompt_ids, self.task.prompt_mask
        hidden = self.policy.get_decoder()(input_ids=ids, attention_mask=mask, position_ids=positions(mask))
        return self.head(prompt_state(hidden.last_hidden_state, mask))

    @property
    def steps_trained(self) -> int:
        """Steps but for those that only drew."""
        return max(0, self.steps_done - self.staleness)

    def state(self) -> dict[str, Any]:
        """All that a later process needs to go on."""
        return {
            "steps_done": self.steps_done,
            "samples": self.samples,
            "position": self.order.position,
            "modules": [module.state_dict() for module in self._modules()],
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "schedules": [schedule.state_dict() for schedule in self.schedules],
            "waiting": [batch.state for batch in self.waiting],
            "replay": [] if self.replay is None else [(rows.state, *rest) for rows, *rest in self.replay.state()],
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from what :meth:`state` returned."""
        self.steps_done, self.samples, self.order.position = (
            state[name] for name in ("steps_done", "samples", "position")
        )
        for kind, ours in (
            ("modules", self._modules()),
            ("optimizers", self.optimizers),
            ("schedules", self.schedules),
        ):
            for one, its in zip(ours, state[kind], strict=True):
                one.load_state_dict(its)
        self.waiting = deque(map(Batch.from_state, state["waiting"]))
        if self.replay is not None:
            self.replay.load([(Batch.from_state(rows), *rest) for rows, *rest in state["replay"]])

    def _modules(self) -> list[nn.Module]:
        return [module for module in (self.policy, self.reference, self.head, self.critic) if module is not None]

    def _schedule(self, optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
        """As verl's FSDP engine makes it."""
        optim, steps = self.actor.optim, self.config.trainer.total_training_steps
        warmup = optim.lr_warmup_steps
        warmup = warmup if warmup > 0 else int(optim.lr_warmup_steps_ratio * steps)
        if optim.lr_scheduler_type == "constant":
            return get_constant_schedule_with_warmup(optimizer, num_warmup_steps=warmup)
        return get_cosine_schedule_with_warmup(
            optimizer, num_warmup_steps=warmup, num_training_steps=steps, min_lr_ratio=optim.min_lr_ratio or 0.0
        )

    def _move_reference(self) -> None:
        every = self.algorithm.reference_reset_steps
        if every is not None and self.steps_done > 1 and (self.steps_done - 1) % every == 0:
            self.reference.load_state_dict(self.policy.state_dict())
            for optimizer in self.optimizers:
                optimizer.state.clear()

    # ---- rollouts ------------------------------------------------------------------------------------------------

    def _replayed_prompts(self) -> int:
        """How many of a batch's prompts are replayed, once there are enough."""
        if self.replay is None:
            return 0
        return self.replay.config.of_step(self.config.data.train_batch_size, self.actor.ppo_mini_batch_size)

    @torch.no_grad()
    def _with_earlier(self, batch: Batch) -> tuple[Batch, dict[str, float]]:
        """A new batch and earlier groups in the place of those that it lacks; it is kept for later steps."""
        batch.columns["ref_log_prob"] = read(self.reference, batch.responses).log_probs
        if self.replay is None:
            return batch, {}
        prompts = self.config.data.train_batch_size
        drawn = self.replay.draw(prompts - len(batch) // self.rollouts, self.steps_done)
        for rows in torch.arange(len(batch)).split(self.rollouts):
            group = batch.rows(rows, longest=self.task.response_length)
            self.replay.add(group, float(group.reward.mean()), self.steps_done)
        if not drawn:
            return batch, {"replay_share": 0.0}
        parts = prompts // self.actor.ppo_mini_batch_size  # each mini-batch has its share
        earlier = [group.rows for group in drawn]
        new = [batch.rows(rows, longest=self.task.response_length) for rows in torch.arange(len(batch)).chunk(parts)]
        each = len(earlier) // parts
        mixed = [
            part for number in range(parts) for part in [new[number], *earlier[number * each : (number + 1) * each]]
        ]
        return concatenate(mixed), {
            "replay_share": len(drawn) / prompts,
            "replay_age": float(np.mean([self.steps_done - group.step for group in drawn])),
            "replay_reward": float(np.mean([group.reward for group in drawn])),
        }

    @torch.no_grad()
    def _draw(self, wanted: int) -> Batch:
        kept: list[Batch] = []
        for _ in range(MOST_DRAWS):
            batch = self._generate(self.order.next(wanted))
            spread = batch.reward.view(-1, self.rollouts).std(-1)
            filtered = self.algorithm.filter_groups.enable
            keep = (spread > GROUPS_WITH_SIGNAL) | (not filtered)
            numbers = keep.repeat_interleave(self.rollouts).nonzero().squeeze(1)
            kept.append(batch.rows(numbers, longest=self.task.response_length))
            if sum(map(len, kept)) >= wanted * self.rollouts:
                break
        drawn = concatenate(kept)
        if not len(drawn):  # every group is solved always or never; as without the filter
            drawn = batch
        drawn = drawn.rows(torch.arange(min(len(drawn), wanted * self.rollouts)))
        drawn.columns[_DREW] = read(self.policy, drawn.responses).log_probs
        return drawn

    @torch.no_grad()
    def _prepare(self, batch: Batch) -> None:
        """Put into ``batch`` what its updates need. pi_old is the policy before them, as in the stack."""
        drew, correction = batch.columns.pop(_DREW), self.algorithm.rollout_correction
        stale = (self.staleness or self.replay is not None) and not correction.bypass_mode
        batch.columns["old_log_probs"] = read(self.policy, batch.responses).log_probs if stale else drew
        if self.critic is not None:
            batch.columns["values"] = values(self.critic, batch.responses)
        advantages.add(batch, self.algorithm, self.flowrl, self.rollouts)
        if correction.rollout_is:
            weights, _ = compute_rollout_correction_weights(
                batch.columns["old_log_probs"] - drew,
                batch.mask,
                correction.rollout_is,
                correction.rollout_is_threshold,
                correction.rollout_is_batch_normalize,
            )
            batch.columns[ROLLOUT_WEIGHTS] = weights

    def _generate(self, prompts: np.ndarray) -> Batch:
        task = self.task
        responses = generate(
            self.policy,
            task.prompt_ids[prompts],
            task.prompt_mask[prompts],
            self.rollouts,
            temperature=self.temperature,
            max_new_tokens=task.response_length,
            ends=task.ends,
        )
        self.samples += len(responses.rows)
        prompt = prompts.repeat(self.rollouts)
        lengths = responses.response_mask.sum(-1).tolist()
        answers = [tuple(row[:length]) for row, length in zip(responses.tokens.tolist(), lengths, strict=True)]
        reward = [task.reward(number, answer) for number, answer in zip(prompt.tolist(), answers, strict=True)]
        return Batch(prompt, responses, torch.tensor(reward))

    # ---- updates -------------------------------------------------------------------------------------------------

    def _update(self, batch: Batch) -> dict[str, float]:
        data = batch.as_worker_data()
        loss, metrics = self._actor_loss(batch, data, read(self.policy, batch.responses))
        said = {name: float(value.aggregate()) for name, value in metrics.items() if isinstance(value, Metric)}
        if self.critic is not None:
            predicted = batch.as_model_output(values(self.critic, batch.responses))
            loss = loss + value_loss(self.critic_config, {"values": predicted}, data)[0]
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        loss.backward()
        norm = self._clip()
        for optimizer in self.optimizers:
            optimizer.step()
        return said | {"grad_norm": norm, "clipped": float(norm > self.actor.optim.clip_grad)}

    def _actor_loss(self, batch: Batch, data: Any, output: Output) -> tuple[torch.Tensor, dict[str, Any]]:
        said: dict[str, torch.Tensor] = {"log_probs": batch.as_model_output(output.log_probs)}
        if self.flowrl is None:
            if self.actor.entropy_coeff:
                said["entropy"] = batch.as_model_output(output.entropy)
            return ppo_loss(self.actor, said, data)
        if self.head is not None:
            state = output.prompt_state
            said["log_z"] = self.head(state.detach() if self.flowrl.partition_detach else state)
        return flowrl_worker_loss(self.flowrl, said, data, actor=self.actor)

    def _clip(self) -> float:
        """Clip gradients as the stack does; returns the joint norm of policy and head before."""
        limit = self.actor.optim.clip_grad
        together = [list(self.policy.parameters())]
        if self.head is not None:
            apart = self.flowrl is not None and self.flowrl.partition_clip_separately
            head = list(self.head.parameters())
            together = [*together, head] if apart else [together[0] + head]
        norms = [nn.utils.clip_grad_norm_(parameters, limit) for parameters in together]
        if self.critic is not None:
            nn.utils.clip_grad_norm_(self.critic.parameters(), self.critic_config.grad_clip)
        return float(torch.stack(norms).norm())
