"""Group rollouts: the responses of a prompt travel together.

verl sends each response by itself to a rollout server, to a reward worker and to the queue: 13 ms of Python a response.
Here one message carries all responses of a prompt at each of the three places, and those of several prompts that are
finished at the same time go into the queue together. What is done with a response is verl's own code: its single-turn
loop, its client, its rows.
"""

import asyncio
import copy
import inspect
import logging
import random
import types
from typing import Any

import numpy as np
import ray
from verl import DataProto
from verl.experimental.agent_loop import AgentLoopOutput
from verl.experimental.agent_loop.agent_loop import DictConfigWrap, ToolListWrap, _agent_loop_registry
from verl.experimental.agent_loop.single_turn_agent_loop import SingleTurnAgentLoop
from verl.trainer.ppo.v1.agent_loop_tq import AgentLoopManagerTQ, AgentLoopWorkerTQ

from verl_ext.group_client import for_one_group
from verl_ext.queue_writer import QueueWriter, Row

logger = logging.getLogger(__name__)

GROUPED = "grouped"
"""Tag of a row whose response travelled with its group; within a worker also the number of responses of a prompt."""

SINGLE_TURN = "single_turn_agent"

_Worker: Any = AgentLoopWorkerTQ.__ray_metadata__.modified_class


class GroupLoop(SingleTurnAgentLoop):
    """verl's single-turn loop for the responses of one prompt, which is tokenized once."""

    _prompt: asyncio.Future[list[int]] | None = None

    async def ct_build_initial_tokens(self, *args: Any, **kwargs: Any) -> list[int]:
        if self._prompt is None:
            self._prompt = asyncio.ensure_future(super().ct_build_initial_tokens(*args, **kwargs))
        return await self._prompt


class GroupAgentLoopWorker(_Worker):
    """verl's agent loop worker; a prompt whose agent answers in a single turn is answered by its group at once.

    All others take verl's way: several turns, tools, an agent loop of one's own, images, rollout servers other than
    vLLM's, ``full_determinism``.
    """

    _writer: QueueWriter | None = None

    def travels_together(self, prompt: dict[str, Any]) -> bool:
        """Whether the responses to ``prompt`` can be asked for at once."""
        agent, rollout = prompt["agent_name"], self.rollout_config
        own = f"{SingleTurnAgentLoop.__module__}.{SingleTurnAgentLoop.__qualname__}"
        return (
            agent == SINGLE_TURN
            and _agent_loop_registry[agent]["_target_"] == own
            and self.processor is None
            and rollout.name == "vllm"
            and not rollout.disaggregation.enabled
            and not rollout.full_determinism
        )

    def sampling_of(
        self, sampling_params: dict[str, Any], trajectory: dict[str, Any], session: dict[str, Any]
    ) -> dict[str, Any]:
        """The sampling parameters of one response, from those of all."""
        return dict(sampling_params)

    async def _run_prompt(
        self, prompt: dict[str, Any], sampling_params: dict[str, Any], trajectory: dict[str, Any], trace: bool = False
    ) -> None:
        if self.travels_together(prompt):
            configured = self.rollout_config.val_kwargs.n if trajectory["validate"] else self.rollout_config.n
            # For verl the group is one session; it writes the prompt's status before and after it.
            prompt = {**prompt, GROUPED: prompt.get("__rollout_n__", configured), "__rollout_n__": 1}
        await super()._run_prompt(prompt, sampling_params, trajectory, trace)

    async def _run_agent_loop(self, sampling_params: dict[str, Any], trajectory: dict[str, Any], **kwargs: Any) -> None:
        size = kwargs.pop(GROUPED, None)
        if size is None:
            own = self.sampling_of(sampling_params, trajectory, kwargs)
            return await super()._run_agent_loop(own, trajectory, **kwargs)
        columns = {name: value for name, value in kwargs.items() if name not in ("agent_name", "trace")}
        sessions = [{**columns, "session_id": number} for number in range(size)]
        loop = self._group_loop()
        runs = [loop.run(self.sampling_of(sampling_params, trajectory, own), **own) for own in sessions]
        answered = await asyncio.gather(*runs, return_exceptions=True)
        errors = [output for output in answered if isinstance(output, BaseException)]
        pairs = [pair for pair in zip(answered, sessions, strict=True) if not isinstance(pair[0], BaseException)]
        errors += await self._put_group(pairs, trajectory["validate"])
        if errors:
            raise BaseExceptionGroup(f"{len(errors)} of {size} responses failed", errors)

    def _group_loop(self) -> GroupLoop:
        return GroupLoop(
            trainer_config=DictConfigWrap(self.config),
            server_manager=for_one_group(self.llm_client, self._interruptible()),
            tokenizer=self.tokenizer,
            processor=self.processor,
            hf_model_type=self.hf_model_type,
            dataset_cls=self.dataset_cls,
            data_config=DictConfigWrap(self.config.data),
            tools=ToolListWrap(self.tools),
        )

    def _interruptible(self) -> bool:
        """Whether a rollout may be cut short: by new weights, or since enough groups are there without it."""
        return self.config.trainer.v1.trainer_mode != "sync" or self.config.algorithm.filter_groups.enable

    async def _put_group(
        self, pairs: list[tuple[AgentLoopOutput, dict[str, Any]]], validate: bool
    ) -> list[BaseException]:
        """Score the responses and put those that could be scored into the queue; returns the others' errors."""
        scored = await self._score_group(pairs)
        errors = [error for error in scored if error is not None]
        pairs = [pair for pair, error in zip(pairs, scored, strict=True) if error is None]
        rows = await asyncio.gather(
            *(self._rows(output, validate, session) for output, session in pairs), return_exceptions=True
        )
        kept: list[Row] = []
        for found in rows:
            if isinstance(found, BaseException):
                errors.append(found)
            else:
                kept += [(key, field, {**tag, GROUPED: True}) for key, field, tag in found]
        self._writer = self._writer or QueueWriter()
        await self._writer.put(kept, "val" if validate else "train")
        return errors

    async def _score_group(self, pairs: list[tuple[AgentLoopOutput, dict[str, Any]]]) -> list[BaseException | None]:
        """Set each response's reward; returns the error of each, None where there is none."""
        if not pairs or self.reward_loop_worker_handles is None:
            return [None] * len(pairs)
        outputs = [output for output, _ in pairs]
        worker = _ScoresAll(random.choice(self.reward_loop_worker_handles))
        asking = copy.copy(self)
        asking.reward_loop_worker_handles = [worker]
        try:
            await _Worker._compute_score(asking, outputs, pairs[0][1])
        except Exception as error:  # of one response at least; asked for by itself, each gets its own
            logger.warning("scoring the responses to %s one by one, since together: %s", pairs[0][1]["uid"], error)
            outputs[-1].reward_score = None
            alone = (self._compute_score([output], session) for output, session in pairs)
            return list(await asyncio.gather(*alone, return_exceptions=True))
        for output, result in zip(outputs, worker.results, strict=True):
            output.reward_score = result["reward_score"]
            output.extra_fields["reward_extra_info"] = result["reward_extra_info"]
            output.metrics.compute_score = outputs[-1].metrics.compute_score
        return [None] * len(pairs)

    async def _rows(self, output: AgentLoopOutput, validate: bool, session: dict[str, Any]) -> list[Row]:
        """The rows that verl would put into the queue for a response.

        They are made by verl's own method, to which this hands the rows instead of the queue.
        """
        kept = _Kept()
        verls = inspect.unwrap(_Worker._agent_loop_postprocess)  # Ray wraps an actor's methods
        instead = {**verls.__globals__, "tq": kept, "list_of_dict_to_tensordict": list}
        await types.FunctionType(verls.__code__, instead)(self, output, validate, **session)
        return kept.rows


class _Kept:
    """Takes the place of TransferQueue, and keeps what is put there."""

    def __init__(self) -> None:
        self.rows: list[Row] = []

    async def async_kv_batch_put(
        self, keys: list[str], fields: list[dict], tags: list[dict], partition_id: str
    ) -> None:
        self.rows += zip(keys, fields, tags, strict=True)


class _ScoresAll:
    """A reward worker's handle; it scores every row of a batch of which verl would have the last one scored."""

    def __init__(self, worker: ray.actor.ActorHandle) -> None:
        self._worker = worker
        self.results: list[dict[str, Any]] = []

    @property
    def compute_score(self) -> "_ScoresAll":
        return self

    async def remote(self, data: DataProto) -> dict[str, Any]:
        # The rows share their objects, and reward managers write into them.
        data.non_tensor_batch = {name: _own_objects(column) for name, column in data.non_tensor_batch.items()}
        self.results = await self._worker.compute_score_batch.remote(data)
        return self.results[-1]


def _own_objects(column: np.ndarray) -> np.ndarray:
    if column.dtype != object:
        return column
    own = np.empty_like(column)
    for place in np.ndindex(column.shape):
        own[place] = copy.deepcopy(column[place])
    return own


class GroupAgentLoopManager(AgentLoopManagerTQ):
    """For ``rollout.agent.agent_loop_manager_class``."""

    worker_class: type = GroupAgentLoopWorker

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.agent_loop_workers_class = ray.remote(self.worker_class)
