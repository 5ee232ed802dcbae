"""Rollouts that repeat: a sampling seed for each request, from the step, the prompt and the sample's number."""

import hashlib
from typing import Any

from verl_ext.group_rollout import GroupAgentLoopManager, GroupAgentLoopWorker


def request_seed(seed: int, step: int, index: Any, session_id: int, validate: bool) -> int:
    """A 31-bit sampling seed that depends on nothing but its arguments."""
    text = f"{seed}/{step}/{index}/{session_id}/{validate}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") >> 1


class SeededAgentLoopWorker(GroupAgentLoopWorker):
    """The agent loop worker with a seed in each request's sampling parameters.

    vLLM's CPU build can't seed a request whose prompt is prefilled in parts: use it with
    ``rollout.enable_chunked_prefill=False`` there.
    """

    def sampling_of(
        self, sampling_params: dict[str, Any], trajectory: dict[str, Any], session: dict[str, Any]
    ) -> dict[str, Any]:
        seed = request_seed(
            self.rollout_config.seed,
            session["global_steps"],
            trajectory["sample_index"],
            session["session_id"],
            trajectory["validate"],
        )
        return {**sampling_params, "seed": seed}


class SeededAgentLoopManager(GroupAgentLoopManager):
    """For ``rollout.agent.agent_loop_manager_class``."""

    worker_class = SeededAgentLoopWorker
