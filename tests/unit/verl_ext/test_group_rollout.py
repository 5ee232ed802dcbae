"""Group rollouts put into the queue what verl's own agent loop worker puts there, with fewer messages.

Everything between a prompt and the queue is the real code but for what another process does: the server samples by
seed, the reward worker is verl's, called in this process.
"""

from __future__ import annotations

import asyncio
import pickle
import random
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from recipe.flowrl.preflight.compose import compose_run
from recipe.flowrl.rehearsal.policy import stand_in_tokenizer

N = 5


class Remote:
    """A method of an actor in this process."""

    def __init__(self, method: Any, calls: Counter, name: str) -> None:
        self.method, self.calls, self.name = method, calls, name

    async def remote(self, *args: Any, **kwargs: Any) -> Any:
        self.calls[self.name] += 1
        await asyncio.sleep(0.001)
        args, kwargs = pickle.loads(pickle.dumps((args, kwargs)))
        result = self.method(*args, **kwargs)
        return await result if asyncio.iscoroutine(result) else result


class Stage:
    """An agent loop worker without its processes. ``put``: key -> columns, tag and partition, as the queue has them."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch, *overrides: str) -> None:
        from verl.experimental.agent_loop import single_turn_agent_loop
        from verl.trainer.ppo.v1 import agent_loop_tq
        from verl.utils.config import omega_conf_to_dataclass
        from verl.utils.dataset.rl_dataset import RLHFDataset

        path = f"actor_rollout_ref.model.path={directory}"
        self.config = compose_run(
            ["experiment=countdown_cpu", path, f"actor_rollout_ref.rollout.n={N}", "deterministic=true", *overrides]
        )
        self.calls: Counter = Counter()
        self.put: dict[str, tuple[dict, dict, str]] = {}
        self.status: list[str] = []
        self.in_one_go: set[bool] = set()
        self.broken: set[int] = set()
        self.empty: set[int] = set()
        self.abort_once: set[int] = set()
        self.scored: list[dict] = []
        self.score_fails = False
        self.tokenizer = stand_in_tokenizer()
        self.dataset_cls = RLHFDataset
        self.rollout_config = omega_conf_to_dataclass(self.config.actor_rollout_ref.rollout)
        monkeypatch.setattr(agent_loop_tq.tq, "async_kv_put", self._async_kv_put)
        monkeypatch.setattr(agent_loop_tq.tq, "async_kv_batch_put", self._async_kv_batch_put)
        # The loop that verl finds is that of the first test.
        monkeypatch.setattr(single_turn_agent_loop.AgentLoopBase, "loop", property(_running, lambda *_: None), False)

    async def _async_kv_put(self, key: str, partition_id: str, tag: dict) -> None:
        self.calls["status"] += 1
        self.status.append(tag["status"])

    async def _async_kv_batch_put(self, keys: list[str], fields: Any, tags: list[dict], partition_id: str) -> None:
        self.calls["put"] += 1
        for place, (key, tag) in enumerate(zip(keys, tags, strict=True)):
            assert key not in self.put
            self.put[key] = ({name: _plain(fields[name], place) for name in fields.keys()}, tag, partition_id)  # noqa: SIM118

    async def generate(self, request_id: str, prompt_ids: list[int], sampling_params: dict, **kwargs: Any) -> Any:
        from verl.workers.rollout.replica import TokenOutput

        assert sampling_params.pop("logprobs"), "each request has parameters of its own"
        self.in_one_go.add(sampling_params.pop("in_one_go", False))
        seed = sampling_params["seed"]
        if seed in self.broken:
            raise ValueError("no such luck")
        draw = random.Random(f"{seed}/{prompt_ids}")
        length = 0 if seed in self.empty else draw.randrange(1, 9)
        tokens = [draw.randrange(300) for _ in range(length)]
        aborted = seed in self.abort_once
        if aborted:
            self.abort_once.discard(seed)
            tokens = tokens[:2]
        return TokenOutput(
            token_ids=tokens,
            log_probs=[-float(token) for token in tokens],
            stop_reason="aborted" if aborted else "completed",
            extra_fields={"global_steps": 3},
        )

    def seed_of(self, session: int) -> int:
        from verl_ext.seeded_rollout import request_seed

        return request_seed(self.rollout_config.seed, 3, 7, session, False)

    def worker(self, grouped: bool) -> Any:
        from verl.experimental.reward_loop.reward_loop import RewardLoopWorker
        from verl.workers.rollout.llm_server import FullyAsyncLLMServerClient, LLMServerClient

        from verl_ext.group_client import AnswersGroups
        from verl_ext.seeded_rollout import SeededAgentLoopWorker

        stage, calls = self, self.calls

        class Server(AnswersGroups):
            generate = stage.generate
            sampling_in_one_go = {"in_one_go": True}

        server = SimpleNamespace(
            generate=Remote(self.generate, calls, "server"),
            generate_group=Remote(Server().generate_group, calls, "server"),
        )
        balancer = SimpleNamespace(
            require_acquire_fields=Remote(lambda: ["prompt_ids"], Counter(), ""),
            require_release_fields=Remote(lambda: ["request_id"], Counter(), ""),
            acquire_server=Remote(lambda request_id, prompt_ids: ("a", server), calls, "acquire"),
            release_server=SimpleNamespace(remote=lambda server_id, request_id: calls.update(["release"])),
        )
        client = FullyAsyncLLMServerClient if self.config.trainer.v1.trainer_mode != "sync" else LLMServerClient

        class Worker(SeededAgentLoopWorker):
            def __init__(self) -> None:  # verl's reads a model and connects to the queue
                self.config, self.rollout_config = stage.config, stage.rollout_config
                self.tokenizer, self.processor, self.hf_model_type = stage.tokenizer, None, "qwen2"
                self.dataset_cls, self.tools, self.distillation_enabled = stage.dataset_cls, [], False
                self.llm_client = client(stage.config, balancer)
                self.background_tasks: set = set()
                scorer = RewardLoopWorker(stage.config)
                scorer.reward_manager.compute_score = stage.score
                self.reward_loop_worker_handles = [
                    SimpleNamespace(
                        compute_score=Remote(scorer.compute_score, calls, "reward"),
                        compute_score_batch=Remote(scorer.compute_score_batch, calls, "reward"),
                    )
                ]

            def travels_together(self, prompt: dict[str, Any]) -> bool:
                return grouped and super().travels_together(prompt)

        return Worker()

    def score(self, data_source: str, solution_str: str, ground_truth: str, extra_info: dict) -> dict:
        extra_info["seen"] = extra_info.get("seen", 0) + 1
        assert extra_info["seen"] == 1, "a response's extra_info is its own"
        if self.score_fails and len(solution_str) % 2:
            raise ValueError("can't grade odd ones")
        return {"score": float(len(solution_str)), "acc": 1.0, "solution": solution_str, "truth": ground_truth}

    def answer(self, grouped: bool, validate: bool = False, **columns: Any) -> Stage:
        async def run() -> None:
            worker = self.worker(grouped)
            prompt = {
                "uid": "u1",
                "index": 7,
                "global_steps": 3,
                "agent_name": "single_turn_agent",
                "raw_prompt": [{"role": "user", "content": "reach 24 from 1 2 3 4"}],
                "data_source": "countdown",
                "reward_model": {"style": "rule", "ground_truth": "24"},
                "extra_info": {"index": 7, "split": "train"},
                **columns,
            }
            trajectory = {"step": 3, "sample_index": 7, "rollout_n": 0, "validate": validate}
            await worker._run_prompt(prompt, {"temperature": 1.0, "logprobs": True}, trajectory)

        asyncio.run(run())
        return self


def _running(loop: Any) -> asyncio.AbstractEventLoop:
    return asyncio.get_running_loop()


def _plain(column: Any, place: int) -> Any:
    value = column[place]
    if isinstance(value, torch.Tensor):
        return value.dtype, value.tolist()
    return getattr(value, "data", value)


def without_times(put: dict[str, tuple[dict, dict, str]]) -> dict[str, tuple[dict, dict, str]]:
    """What is put, but for how long it took and the tag of a group."""
    told = {}
    for key, (columns, tag, partition) in put.items():
        columns = {name: value for name, value in columns.items() if name != "metrics"}
        told[key] = (columns, {name: value for name, value in tag.items() if name != "grouped"}, partition)
    return told


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("model")
    stand_in_tokenizer().save_pretrained(directory)
    (directory / "config.json").write_text('{"model_type": "qwen2"}')
    return directory


@pytest.fixture
def stage(model: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    return lambda *overrides: Stage(model, monkeypatch, *overrides)


@pytest.mark.parametrize("validate", [False, True])
@pytest.mark.parametrize("mode", ["sync", "colocate_async"])
def test_the_same_rows_in_one_message_each(stage: Any, validate: bool, mode: str) -> None:
    rows = {}
    for grouped in (False, True):
        done = stage(f"trainer.v1.trainer_mode={mode}").answer(grouped, validate)
        number = 8 if validate else N  # of the experiment's val_kwargs.n
        messages = 1 if grouped else number
        assert done.status == ["running", "finished"]
        assert done.calls == {name: messages for name in ("acquire", "release", "server", "reward", "put")} | {
            "status": 2
        }
        rows[grouped] = without_times(done.put)
        assert set(rows[grouped]) == {f"u1_{session}_0" for session in range(number)}
        assert {partition for _, _, partition in rows[grouped].values()} == {"val" if validate else "train"}
    assert rows[True] == rows[False]
    columns, tag, _ = rows[True]["u1_2_0"]
    assert {"prompts", "responses", "rollout_log_probs", "rm_scores", "reward_model", "session_id"} <= columns.keys()
    assert len({str(columns["responses"]) for columns, _, _ in rows[True].values()}) > 1


def test_a_reward_that_raises_costs_its_own_response_alone(stage: Any) -> None:
    rows = {}
    for grouped in (False, True):
        staged = stage()
        staged.score_fails = True
        done = staged.answer(grouped)
        assert done.status == ["running", "failure"]
        rows[grouped] = without_times(done.put)
    assert rows[True] == rows[False] and 0 < len(rows[True]) < N


def test_a_sample_that_fails_costs_its_own_response_alone(stage: Any) -> None:
    rows = {}
    for grouped in (False, True):
        staged = stage()
        staged.broken = {staged.seed_of(3)}
        done = staged.answer(grouped)
        assert done.status == ["running", "failure"]
        rows[grouped] = without_times(done.put)
    assert rows[True] == rows[False] and set(rows[True]) == {f"u1_{session}_0" for session in (0, 1, 2, 4)}


def test_when_all_fail_the_prompt_has(stage: Any) -> None:
    staged = stage()
    staged.broken = {staged.seed_of(session) for session in range(N)}
    done = staged.answer(True)
    assert done.status == ["running", "failure"] and not done.put


def test_an_empty_response_has_no_log_probs_and_takes_a_put_of_its_own(stage: Any) -> None:
    rows = {}
    for grouped in (False, True):
        staged = stage()
        staged.empty = {staged.seed_of(1)}
        done = staged.answer(grouped)
        rows[grouped] = without_times(done.put)
    assert rows[True] == rows[False]
    assert done.calls["put"] <= 2


def test_samples_that_new_weights_cut_go_on(stage: Any) -> None:
    rows = {}
    for grouped in (False, True):
        staged = stage("trainer.v1.trainer_mode=colocate_async")
        staged.abort_once = {staged.seed_of(1), staged.seed_of(4)}
        done = staged.answer(grouped)
        messages = done.calls["server"]
        assert messages == done.calls["acquire"] == done.calls["release"]
        assert messages in ((2, 3) if grouped else (N + 2,))  # the two wait a second, and may not wake in the same turn
        rows[grouped] = without_times(done.put)
    assert rows[True] == rows[False]
    assert len(rows[True]) == N


@pytest.mark.parametrize(
    ("override", "in_one_go"),
    [
        ("trainer.v1.trainer_mode=sync", True),
        ("trainer.v1.trainer_mode=colocate_async", False),
        ("algorithm.filter_groups.enable=true", False),
    ],
)
def test_what_nothing_cuts_short_is_told_at_its_end_alone(stage: Any, override: str, in_one_go: bool) -> None:
    assert stage(override).answer(True).in_one_go == {in_one_go}


@pytest.mark.parametrize("n", [1, 2])
def test_a_number_of_responses_that_the_prompt_brings(stage: Any, n: int) -> None:
    done = stage().answer(True, __rollout_n__=n)
    assert list(done.put) == [f"u1_{session}_0" for session in range(n)]
    assert done.calls["server"] == done.calls["put"] == 1


def test_rows_say_that_they_came_in_a_group(stage: Any) -> None:
    assert all(tag["grouped"] for _, tag, _ in stage().answer(True).put.values())
    assert not any("grouped" in tag for _, tag, _ in stage().answer(False).put.values())


def test_other_agents_take_verls_way(stage: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from verl.experimental.agent_loop import agent_loop

    own = {"_target_": "verl.experimental.agent_loop.single_turn_agent_loop.SingleTurnAgentLoop"}
    monkeypatch.setitem(agent_loop._agent_loop_registry, "own", own)
    done = stage().answer(True, agent_name="own")
    assert done.calls["server"] == done.calls["put"] == N
    assert without_times(done.put) == {
        key: ({**columns}, tag, partition)
        for key, (columns, tag, partition) in without_times(stage().answer(False).put).items()
    }


@pytest.mark.parametrize(
    "changed", [{"agent_name": "tool_agent"}, {"processor": object()}, {"full_determinism": True}, {"name": "sglang"}]
)
def test_what_doesnt_travel_together(stage: Any, changed: dict[str, Any]) -> None:
    import dataclasses

    worker = asyncio.run(_made(stage()))
    prompt = {"agent_name": changed.get("agent_name", "single_turn_agent")}
    assert worker.travels_together({"agent_name": "single_turn_agent"})
    worker.processor = changed.get("processor")
    fields = {name: value for name, value in changed.items() if name in ("full_determinism", "name")}
    worker.rollout_config = dataclasses.replace(worker.rollout_config, **fields)
    assert not worker.travels_together(prompt)


async def _made(stage: Stage) -> Any:
    return stage.worker(True)
