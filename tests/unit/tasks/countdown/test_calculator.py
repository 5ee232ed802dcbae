"""Countdown with a calculator: the tool, the reward, and what verl's tool agent makes of a conversation."""

from __future__ import annotations

import asyncio
import json
from types import SimpleNamespace
from typing import Any

import pytest
from omegaconf import DictConfig

from recipe.flowrl.preflight.compose import compose_run
from recipe.flowrl.tasks.countdown import reward
from recipe.flowrl.tasks.countdown.attempts import compute_score
from recipe.flowrl.tasks.countdown.data import Puzzle
from recipe.flowrl.tasks.tiny_qwen2 import build_tokenizer

PUZZLE = Puzzle((2, 3, 5), 11, 2)
TRUTH = json.dumps({"numbers": [2, 3, 5], "target": 11, "n_solutions": 2})


@pytest.fixture(scope="module")
def config() -> DictConfig:
    return compose_run(["experiment=tools_cpu"])


def tools_of(config: DictConfig) -> list[Any]:
    """As verl's agent loop worker loads them."""
    from verl.tools.tool_registry import load_all_tools

    path = config.actor_rollout_ref.rollout.multi_turn.function_tool_path
    return load_all_tools(tool_config_path=None, function_tool_path=path)


@pytest.mark.parametrize(
    ("turns", "acc", "attempts"),
    [
        ("2*3+5", 1.0, 1),
        ("2+3+5", 0.0, 1),
        ("2+3+5\ntool\n10\nassistant\n2*3+5", 1.0, 2),
        ("2+3+5<|im_end|>\n<|im_start|>tool\n10<|im_end|>\n<|im_start|>assistant\n3*2+5<|im_end|>", 1.0, 2),
        ("2*3+5\ntool\n11\nassistant\n2+3+5", 1.0, 2),
        ("2+3+5\ntool\n2*3+5\nassistant\n1+1", 0.0, 2),
        ("2+3+5\n2*3+5", 0.0, 1),
        ("", 0.0, 1),
        ("\nassistant\n" * 3, 0.0, 4),
    ],
)
def test_the_first_right_attempt_counts(turns: str, acc: float, attempts: int) -> None:
    score = compute_score("countdown", turns, TRUTH)
    assert (score["acc"], score["score"], score["attempts"]) == (acc, acc, attempts)
    right = reward.compute_score("countdown", "2*3+5", TRUTH)["solution"]
    assert score["solution"] == (right if acc else "")


@pytest.mark.parametrize(
    ("expression", "value"),
    [("2*3+5", "11"), ("2-5", "-3"), ("1/3", "1/3"), ("1/0", "not an expression"), ("__import__('os')", "not an exp")],
)
def test_the_calculator(config: DictConfig, expression: str, value: str) -> None:
    (calculator,) = tools_of(config)
    assert asyncio.run(calculator.call({"expression": expression})).startswith(value)


class Script:
    """A rollout server that says these turns; log-prob -1 for the first token it says, -2 for the next, and so on."""

    def __init__(self, tokenizer: Any, turns: list[str]) -> None:
        self.turns = [tokenizer(turn)["input_ids"] + [tokenizer.eos_token_id] for turn in turns]
        self.asked: list[list[int]] = []
        self.said = 0

    async def generate(self, prompt_ids: list[int], **kwargs: Any) -> SimpleNamespace:
        turn = self.turns[len(self.asked)]
        self.asked.append(list(prompt_ids))
        log_probs = [-float(self.said + number) for number in range(1, len(turn) + 1)]
        self.said += len(turn)
        return SimpleNamespace(
            token_ids=turn, log_probs=log_probs, num_preempted=0, routed_experts=None, extra_fields={}
        )


def conversation(config: DictConfig, turns: list[str]) -> tuple[Any, Script, Any]:
    """What verl's tool agent hands on of a conversation in which the model says ``turns``."""
    from verl.experimental.agent_loop.agent_loop import DictConfigWrap, ToolListWrap, _agent_loop_registry
    from verl.experimental.agent_loop.tool_agent_loop import ToolAgentLoop
    from verl.utils.dataset.rl_dataset import RLHFDataset

    rollout = config.actor_rollout_ref.rollout
    assert _agent_loop_registry[rollout.agent.default_agent_loop]["_target_"].endswith(".ToolAgentLoop")
    tokenizer = build_tokenizer()
    script = Script(tokenizer, turns)

    async def converse() -> Any:
        loop = ToolAgentLoop(
            trainer_config=DictConfigWrap(config),
            server_manager=script,
            tokenizer=tokenizer,
            processor=None,
            dataset_cls=RLHFDataset,
            data_config=DictConfigWrap(config.data),
            hf_model_type="qwen2",
            tools=ToolListWrap(tools_of(config)),
        )
        return await loop.run({}, raw_prompt=[{"role": "user", "content": PUZZLE.prompt}])

    return asyncio.run(converse()), script, tokenizer


def test_only_the_models_tokens_count(config: DictConfig) -> None:
    """The mask has a hole where the calculator speaks; log-probs are where their tokens are; one prompt, the first."""
    output, script, tokenizer = conversation(config, ["2+3+5", "2*3-5", "2*3+5"])
    chat = [{"role": "user", "content": PUZZLE.prompt}]
    prompt = tokenizer(tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False))["input_ids"]
    assert output.prompt_ids == prompt == script.asked[0]

    said = [token for turn in script.turns for token in turn]
    mask = output.response_mask
    assert [token for token, own in zip(output.response_ids, mask, strict=True) if own] == said
    assert [p for p, own in zip(output.response_logprobs, mask, strict=True) if own] == [
        -float(number) for number in range(1, len(said) + 1)
    ]
    between = tokenizer.decode([t for t, own in zip(output.response_ids, mask, strict=True) if not own])
    assert "tool\n10<|im_end|>" in between and "tool\n1<|im_end|>" in between
    assert "".join(map(str, mask)).strip("1").count("1") == len(script.turns[1]), "two holes, a turn between them"
    assert script.asked[2] == (output.prompt_ids + output.response_ids)[: len(script.asked[2])]
    text = tokenizer.decode(output.response_ids, skip_special_tokens=True)
    assert compute_score("countdown", text, TRUTH)["attempts"] == 3


def test_what_is_no_expression_ends_it(config: DictConfig) -> None:
    output, script, _ = conversation(config, ["2+3+5", "I give up", "never said"])
    assert len(script.asked) == 2 and output.num_turns == 4


def test_there_are_three_turns_at_most(config: DictConfig) -> None:
    _, script, _ = conversation(config, ["1", "1", "1", "never said"])
    assert len(script.asked) == 3
