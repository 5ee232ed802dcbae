"""Rollouts that repeat: a sampling seed for each request, from the step, the prompt and the sample's number."""

import hashlib
from typing import Any

import ray
from verl.trainer.ppo.v1.agent_loop_tq import AgentLoopManagerTQ, AgentLoopWorkerTQ


def request_seed(seed: int, step: int, index: Any, session_id: int, validate: bool) -> int:
    """A 31-bit sampling seed that depends on nothing but its arguments."""
    text = f"{seed}/{step}/{index}/{session_id}/{validate}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") >> 1


class SeededAgentLoopWorker(AgentLoopWorkerTQ.__ray_metadata__.modified_class):
    """verl's agent loop worker with a seed in each request's sampling parameters.

    vLLM's CPU build can't seed a request whose prompt is prefilled in parts: use it with
    ``rollout.enable_chunked_prefill=False`` there.
    """

    async def _run_agent_loop(self, sampling_params: dict[str, Any], trajectory: dict[str, Any], **kwargs: Any) -> Any:
        seed = request_seed(
            self.rollout_config.seed,
            kwargs["global_steps"],
            trajectory["sample_index"],
            kwargs["session_id"],
            trajectory["validate"],
        )
        return await super()._run_agent_loop({**sampling_params, "seed": seed}, trajectory, **kwargs)


class SeededAgentLoopManager(AgentLoopManagerTQ):
    """For ``rollout.agent.agent_loop_manager_class``."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.agent_loop_workers_class = ray.remote(SeededAgentLoopWorker)
