"""The rewards of the paper's runs through verl's reward worker and manager, as a run's configuration resolves them.

``RewardLoopWorker`` is the class that verl makes an actor of; here it is called in this process. Responses go in as
token ids.
"""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from recipe.flowrl.preflight.compose import compose_run
from recipe.flowrl.rehearsal.policy import stand_in_tokenizer
from recipe.flowrl.sandbox import bubblewrap

DATA = Path(__file__).resolve().parents[1] / "data"
LEETCODE = [json.loads(line) for line in (DATA / "leetcode_solutions.jsonl").read_text().splitlines()]
ANSWERS = [json.loads(line)["answer"] for line in (DATA / "math_answers.jsonl").read_text().splitlines()][:40]
FLAGS = {"extraction_failed", "timed_out", "grader_failed"}

needs_bubblewrap = pytest.mark.skipif(bubblewrap.problem() is not None, reason=f"no sandbox: {bubblewrap.problem()}")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("tokenizer")
    stand_in_tokenizer().save_pretrained(directory)
    (directory / "config.json").write_text(json.dumps({"model_type": "qwen2"}))
    return directory


def graded(
    tokenizer: Path, overrides: list[str], answers: list[tuple[str, str, str]], source: str = "math_dapo"
) -> list[dict]:
    """Response, ground truth and split of each answer -> score and what else the worker tells."""
    from verl import DataProto
    from verl.experimental.reward_loop.reward_loop import RewardLoopWorker

    config = compose_run([*overrides, "cluster=1x8", f"actor_rollout_ref.model.path={tokenizer}"])

    def data(ids: list[int], truth: str, split: str) -> DataProto:
        responses = torch.tensor([ids])
        columns = {
            "data_source": source,
            "reward_model": {"style": "rule", "ground_truth": truth},
            "extra_info": {"split": split, "index": 0},
        }
        return DataProto.from_dict(
            tensors={"prompts": responses, "responses": responses, "attention_mask": torch.ones_like(responses)},
            non_tensors={name: np.array([value], dtype=object) for name, value in columns.items()},
        )

    async def grade() -> list[dict]:
        worker = RewardLoopWorker(config)
        told = []
        for response, truth, split in answers:
            ids = worker.input_tokenizer(response)["input_ids"] + [worker.input_tokenizer.eos_token_id]
            told.append(await worker.compute_score(data(ids, truth, split)))
        return told

    return asyncio.run(grade())


@pytest.mark.parametrize("reward", ["math_dapo", "math_verify"])
def test_right_answers_of_real_problems_are_right(tokenizer: Path, reward: str) -> None:
    written = [(f"So it is.\n\\boxed{{{answer}}}", answer, "test") for answer in ANSWERS]
    wrong = [(f"So it is.\n\\boxed{{{answer} + 1}}", answer, "test") for answer in ANSWERS if answer.isdigit()]
    told = graded(tokenizer, ["experiment=math_7b", f"reward={reward}"], [*written, *wrong, ("?", "1", "test")])
    right, others = told[: len(written)], told[len(written) :]
    assert all(one["reward_score"] == 1.0 for one in right)
    assert len(others) > 5 and all(one["reward_score"] == 0.0 for one in others)
    assert others[-1]["reward_extra_info"]["extraction_failed"] == 1.0
    assert all(set(one["reward_extra_info"]) >= FLAGS for one in told), "what the metrics are made of"


def test_training_is_graded_by_the_published_rule(tokenizer: Path) -> None:
    answers = [("Answer: 7", "7", "train"), ("\\boxed{7}", "7", "train"), ("Answer: 8", "7", "train")]
    told = graded(tokenizer, ["experiment=math_7b"], answers)
    assert [one["reward_score"] for one in told] == [1.0, -1.0, -1.0]


@needs_bubblewrap
def test_accepted_solutions_are_right_and_run_in_the_sandbox(tokenizer: Path) -> None:
    accepted = [(f"```python\n{row['solution']}\n```", json.dumps(row["tests"]), "train") for row in LEETCODE]
    host = json.dumps([{"input": "", "output": "sandbox"}])
    others = [
        ("```python\nimport os\nprint(os.uname().nodename)\n```", host, "train"),
        ("```python\nprint('wrong')\n```", host, "train"),
        ("no program", host, "train"),
    ]
    told = graded(tokenizer, ["experiment=code_7b"], [*accepted, *others])
    assert all(one["reward_score"] == 1.0 for one in told[: len(accepted)])
    assert [one["reward_score"] for one in told[len(accepted) :]] == [1.0, 0.0, 0.0]
    assert told[-1]["reward_extra_info"]["extraction_failed"] == 1.0
    assert all(set(one["reward_extra_info"]) >= FLAGS for one in told)


@pytest.mark.parametrize("manager", ["naive", "dapo"])
@pytest.mark.parametrize("source", ["numina_olympiads", "taco", "hiyouga/geometry3k"])
def test_no_row_makes_verl_run_what_the_model_wrote(tokenizer: Path, source: str, manager: str, tmp_path: Path) -> None:
    """Whatever way the row came, verl's own reward being chosen."""
    overrides = ["experiment=math_7b", "reward.custom_reward_function.path=null"]
    overrides.append(f"reward.reward_manager.name={manager}")
    trace = tmp_path / "trace"
    program = f"open({str(trace)!r}, 'w')"
    text = f"```python\n{program}\n```\n\\boxed{{{program}}}"
    with pytest.raises(ImportError, match="is shut: it .*reward.custom_reward_function.path"):
        graded(tokenizer, overrides, [(text, '{"inputs": [""], "outputs": [""]}', "train")], source)
    assert not trace.exists()
