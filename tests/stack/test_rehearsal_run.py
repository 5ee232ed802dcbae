"""``dryrun=true`` of the paper's three runs through the real stack, and the rewards inside it.

What the policy writes is known, so each of its responses can be graded here a second time. A program that prints the
host's name is right only where the reward worker ran it in the sandbox.
"""

import json
from pathlib import Path

import pytest
from runs import Run, finish, start
from transformers import AutoModelForCausalLM

from recipe.flowrl.rehearsal.policy import PHRASES

RUNS = {"math_7b": "1x8", "math_32b": "4x8", "code_7b": "1x8"}
ALGORITHMS = {"math_7b": "flowrl", "math_32b": "grpo", "code_7b": "flowrl"}
OPTIONS = {
    "math_7b": [f"actor_rollout_ref.actor.fsdp_config.{kind}_offload=true" for kind in ("param", "optimizer")],
    "math_32b": ["actor_rollout_ref.model.lora_rank=8"],
    "code_7b": [],
}

LIKE_MATH_7B = pytest.mark.slow(reason="two minutes; differs from math_7b in the algorithm and the cluster")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Without any data of the paper's."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module", params=["math_7b", "code_7b", pytest.param("math_32b", marks=LIKE_MATH_7B)])
def rehearsal(request: pytest.FixtureRequest, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Run]:
    name = request.param
    run_dir = tmp_path_factory.mktemp(name) / "run"
    options = [f"cluster={RUNS[name]}", f"algo={ALGORITHMS[name]}", *OPTIONS[name], "dryrun=true"]
    process = start(run_dir, *options, experiment=name, FLOWRL_CACHE=str(cache))
    run = finish(process, Path(f"{run_dir}-rehearsal"))
    assert run.status == 0, f"{run.output[-3000:]}\n{run.log[-6000:]}"
    return name, run


def rollouts(run: Run) -> list[dict]:
    lines = [path.read_text().splitlines() for path in sorted((run.run_dir / "rollouts").glob("*.jsonl"))]
    return [json.loads(line) for step in lines for line in step]


def test_it_goes_all_the_way(rehearsal: tuple[str, Run]) -> None:
    name, run = rehearsal
    assert sorted(run.metrics) == [0, 1, 2]
    assert all(run.metrics[step]["actor/grad_norm"] > 0 for step in (1, 2))
    assert all(run.metrics[step]["training/rollout_probs_diff_max"] < 1e-4 for step in (1, 2))
    source = "livecodebench" if name == "code_7b" else "aime2024"
    assert f"val-core/{source}/acc/mean@2" in run.metrics[2]
    assert (run.checkpoint(2) / "actor" / "model_world_size_2_rank_1.pt").is_file(), "two ranks"
    exported = AutoModelForCausalLM.from_pretrained(run.run_dir / "exported")
    assert exported.config.architectures == ["Qwen2ForCausalLM"] and exported.config.num_hidden_layers == 2
    assert (run.run_dir / "report.html").is_file()


def test_it_says_what_it_changed_and_what_it_went_through(rehearsal: tuple[str, Run]) -> None:
    name, run = rehearsal
    before, after = run.output.split("run directory:")
    assert f"rehearsal of {name}, {ALGORITHMS[name]}" in before
    for option in ("data.train_batch_size", "trainer.device", "not here: actor_rollout_ref.rollout.free_cache_engine"):
        assert option in before
    assert "use_fused_kernels" not in before, "it stays"
    assert "a few problems of our own" in before
    account = after.split("rehearsed:")[1]
    for part in ("rollout", "reward", "update", "weight sync", "validation", "checkpoint", "export"):
        assert part in account
    assert "probabilities of rollout and trainer agree" in account


def test_gradings_are_metrics(rehearsal: tuple[str, Run]) -> None:
    name, run = rehearsal
    answers = rollouts(run)
    for step in (1, 2):
        metrics = run.metrics[step]
        assert metrics["train/timed_out"] == metrics["train/grader_failed"] == 0.0
        assert 0 < metrics["train/extraction_failed"] < 1
        right = [row["score"] == 1.0 for row in answers if row["step"] == step]
        assert metrics["train/solve_rate"] == pytest.approx(sum(right) / len(right))
    assert sum(row["output"] in PHRASES["code" if name == "code_7b" else "math"] for row in answers) > len(answers) / 2


def test_each_response_got_the_score_that_it_deserves(rehearsal: tuple[str, Run]) -> None:
    name, run = rehearsal
    domain = "code" if name == "code_7b" else "math"
    graded = [row for row in rollouts(run) if row["output"] in PHRASES[domain]]
    wrong_score = {"math": -1.0, "code": 0.0}[domain]
    for row in graded:
        assert row["score"] == (1.0 if is_right(row["output"], row["gts"]) else wrong_score), row
    assert {row["score"] for row in graded} == {wrong_score, 1.0}
    if domain == "code":
        in_sandbox = [row for row in graded if "nodename" in row["output"] and '"sandbox"' in row["gts"]]
        assert in_sandbox and all(row["score"] == 1.0 for row in in_sandbox)


def is_right(output: str, truth: str) -> bool:
    """By hand: what the phrase prints, or the digit in it."""
    if not truth.startswith("["):
        return output == f"Answer: {truth}"
    cases = [(case["input"], case["output"]) for case in json.loads(truth)]
    printed = {"print(input())": None, "print(0)": "0", "print(1)": "1", "nodename": "sandbox"}
    for program, constant in printed.items():
        if program in output:
            return all((stdin if constant is None else constant) == stdout for stdin, stdout in cases)
    return False
