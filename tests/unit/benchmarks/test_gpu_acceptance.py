"""The bookkeeping of the acceptance script, on canned records; its launches are real ones, composed and not started."""

from __future__ import annotations

import io
import json
import math
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from markupsafe import escape

from benchmarks import acceptance_runs
from benchmarks.acceptance_checks import (
    FAIL,
    NEEDS_CUDA,
    NOT_ASKED_FOR,
    NOT_RUN,
    OUT_OF_TIME,
    PASS,
    STILL_TO_COME,
    Result,
    all_checks,
    judge,
)
from benchmarks.acceptance_models import Shape, exported_parameters, shapes, tokenizer_of, write_model
from benchmarks.acceptance_runs import MEMORY_SHARE, RUNS, STEPS, Evidence, keep, overrides_of
from benchmarks.children import ChildError
from benchmarks.gpu_acceptance import ACTIONS, Acceptance, Action, in_one_line, main
from benchmarks.launches import Launch
from recipe.flowrl import preflight
from recipe.flowrl.common.gpus import GPUS
from recipe.flowrl.plan.advice import problems
from recipe.flowrl.plan.architecture import shape_of
from recipe.flowrl.plan.memory import plan_memory
from recipe.flowrl.preflight.compose import compose_run, compose_unresolved
from recipe.flowrl.reporting.console import RunConsole

GIB = 2**30
STEP = {
    "training/rollout_probs_diff_mean": 0.001,
    "training/rollout_actor_probs_pearson_corr": 0.9995,
    "rollout_corr/k3_kl": 0.0004,
    "actor/flowrl/ref_kl": 0.3,
    "actor/flowrl/clip_fraction": 0.02,
    "actor/flowrl/log_z": -0.3,
    "actor/loss": 4.0,
    "actor/grad_norm": 1.5,
    "actor/perf/max_memory_allocated_gb": 10.0,
    "timing_s/step": 9.0,
    "timing_s/gen": 5.0,
    "timing_s/update_actor": 2.0,
}
"""Metrics of a step that meets every bound."""


class Clock:
    """Goes on only when told to."""

    def __init__(self) -> None:
        self.time = 1000.0

    def __call__(self) -> float:
        return self.time


def canned(clock: Clock, device: str = "cuda", **changes: dict[str, Any]) -> dict[str, Action]:
    """The script's actions, which only write down what a good one leaves; run -> what its steps have instead."""

    def write(evidence: Evidence, name: str) -> None:
        directory, started = evidence.directory(name), clock.time
        directory.mkdir(parents=True, exist_ok=True)
        first = STEPS + 1 if name == "resumed" else 1
        with (directory / "metrics.jsonl").open("a") as metrics, (directory / "events.jsonl").open("a") as events:
            for step in range(first, STEPS + 2 if name == "resumed" else STEPS + 1):
                for phase, gib in (("rollout", 40.0), ("log-probs", 8.0), ("update", 14.0)):
                    events.write(json.dumps({"time": clock.time, "event": "phase", "name": phase}) + "\n")
                    evidence.gpu_memory.append((clock.time + 0.5, gib * GIB))
                    clock.time += 1
                line = {**STEP, **changes.get(name, {}), "step": step, "time": clock.time}
                metrics.write(json.dumps(line) + "\n")
                events.write(json.dumps({"time": clock.time, "event": "step", "step": step}) + "\n")
        keep(evidence, name, Launch(directory, started))
        checkpoint = directory / "checkpoints" / f"global_step_{STEPS + 1 if name == 'resumed' else STEPS}"
        checkpoint.mkdir(parents=True)
        (checkpoint.parent / "latest_checkpointed_iteration.txt").write_text(checkpoint.name.rpartition("_")[2])

    def do(evidence: Evidence, limit_s: float, name: str) -> None:
        if name == "models":
            evidence.parameters = {"qwen2.5-0.5b-untied": 1000}
            for model, shape in shapes(device).items():
                (evidence.models / model).mkdir(parents=True)
                config = {**shape.architecture, "vocab_size": shape.vocabulary}
                (evidence.models / model / "config.json").write_text(json.dumps(config))
        elif name == "export":
            evidence.exported = 1000
        else:
            for run in ("pair-1", "pair-2") if name == "pair" else (name,):
                write(evidence, run)
        clock.time += ACTIONS[name].expected_s

    return {
        name: Action(action.title, action.limit_s, action.expected_s, partial(do, name=name), action.after)
        for name, action in ACTIONS.items()
    }


def failing(message: str) -> Callable[..., None]:
    def do(evidence: Evidence, limit_s: float) -> None:
        raise ChildError(message)

    return do


def acceptance(tmp_path: Path, clock: Clock, device: str = "cuda", **options: Any) -> Acceptance:
    machine = {
        "gpu": {"name": "NVIDIA H100"},
        "cpu": "a CPU",
        "date": "now",
        "python": "3.11",
        "packages": {"verl": "0"},
    }
    evidence = Evidence(device, tmp_path / "work", gpu_bytes=80 * GIB)
    return Acceptance(evidence, tmp_path, machine, now=clock, **options)


def run(tmp_path: Path, actions: dict[str, Action], **options: Any) -> dict[str, Result]:
    results = acceptance(tmp_path, **options).run(RunConsole(io.StringIO()), actions)
    return {result.name: result for result in results}


def verdicts(results: dict[str, Result], but: tuple[str, ...] = ()) -> set[str]:
    return {result.verdict for name, result in results.items() if name not in but}


PLANNED = ("fused: memory", "large: memory", "unfused: memory")
"""Their value depends on what the plan says of the real shapes."""


def test_a_good_run_passes_every_check_and_is_written_down(tmp_path: Path) -> None:
    clock = Clock()
    results = run(tmp_path, canned(clock), clock=clock)
    assert verdicts(results, but=PLANNED) == {PASS}
    assert results["sleep"].value == pytest.approx((40 - 8) / (80 * MEMORY_SHARE))
    assert results["resume"].value == results["save"].value == STEPS + 1
    for name in PLANNED:
        assert results[name].value > 0
    record = json.loads((tmp_path / "gpu_acceptance.json").read_text(), parse_constant=pytest.fail)
    assert {check["name"] for check in record["checks"]} == set(results)
    assert all(
        set(check) == {"name", "title", "bound", "unit", "value", "verdict", "why"} for check in record["checks"]
    )
    assert sum(record["summary"].values()) == len(results)
    assert set(record["runs"]) == set(RUNS) and list(record["runs"]["resumed"]["steps"]) == [str(STEPS + 1)]
    page = (tmp_path / "gpu_acceptance.html").read_text()
    assert page.count("<svg") == 2 and "http://" not in page.replace("http://www.w3.org", "").replace(
        "http://purl.org", ""
    ).replace("http://creativecommons.org", "")
    assert all(str(escape(result.title)) in page for result in results.values())


def test_memory_is_compared_with_the_plan_of_the_run(tmp_path: Path) -> None:
    clock = Clock()
    first = run(tmp_path / "1", canned(clock), clock=clock)
    exact = {
        run: {"actor/perf/max_memory_allocated_gb": 10.0 * first[f"{run}: memory"].value}
        for run in ("fused", "large", "unfused")
    }
    second = run(tmp_path / "2", canned(clock, **exact), clock=clock)
    assert all(second[name].value == pytest.approx(1) and second[name].verdict == PASS for name in PLANNED)


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Acceptance:
    """A run that passes, carried out."""
    clock = Clock()
    given = acceptance(tmp_path_factory.mktemp("good"), clock)
    given.run(RunConsole(io.StringIO()), canned(clock))
    return given


@pytest.mark.parametrize(
    ("launch", "metric", "value", "check"),
    [
        ("fused", "training/rollout_probs_diff_mean", 0.2, "fused: probabilities"),
        ("grpo", "training/rollout_actor_probs_pearson_corr", 0.5, "grpo: correlation"),
        ("unfused", "rollout_corr/k3_kl", 0.3, "unfused: KL"),
        ("fused", "rollout_corr/k3_kl", 0.3, "fused: weight sync"),
        ("resumed", "rollout_corr/k3_kl", 0.3, "resumed: weight sync"),
        ("pair-2", "rollout_corr/k3_kl", 0.3, "pair: weight sync"),
        ("pair-2", "rollout_corr/k3_kl", 0.3, "pair: KL"),
        ("pair-1", "rollout_corr/k3_kl", math.nan, "pair: KL"),
        ("large", "actor/flowrl/clip_fraction", 0.6, "large: clipped"),
        ("fused", "actor/flowrl/log_z", math.nan, "fused: not finite"),
        ("resumed", "actor/grad_norm", math.inf, "resumed: not finite"),
        ("fused", "timing_s/step", 60.0, "step time"),
        ("fused", "timing_s/update_actor", 3.0, "FlowRL / GRPO: time"),
        ("fused", "actor/perf/max_memory_allocated_gb", 11.0, "FlowRL / GRPO: memory"),
        ("fused", "actor/perf/max_memory_allocated_gb", 11.0, "fused / unfused: memory"),
        ("unfused", "timing_s/update_actor", 0.5, "fused / unfused: time"),
    ],
)
def test_a_value_out_of_bounds_fails_its_check(
    good: Acceptance, launch: str, metric: str, value: float, check: str
) -> None:
    steps = {**good.evidence.steps[launch]}
    last = max(steps)
    steps[last] = {**steps[last], metric: value}
    evidence = replace(good.evidence, steps={**good.evidence.steps, launch: steps})
    asked = next(c for c in all_checks({}, {}) if c.name == check)
    assert judge(asked, good.evidence, {}).verdict == PASS
    result = judge(asked, evidence, {})
    assert result.verdict == FAIL and result.bound in result.why
    assert result.value is None or math.isfinite(result.value)


def test_a_policy_that_never_moved_shows_nothing_of_the_weight_sync(good: Acceptance) -> None:
    steps = {step: {**metrics, "actor/flowrl/ref_kl": 0.0} for step, metrics in good.evidence.steps["fused"].items()}
    evidence = replace(good.evidence, steps={**good.evidence.steps, "fused": steps})
    asked = next(c for c in all_checks({}, {}) if c.name == "fused: weight sync")
    assert "the policy is still the reference" in judge(asked, evidence, {}).why


def test_what_isnt_finite_is_null_in_the_file(tmp_path: Path) -> None:
    clock = Clock()
    actions = canned(clock, "cpu", fused={"actor/flowrl/log_z": math.nan, "actor/loss": math.inf})
    results = run(tmp_path, actions, clock=clock, device="cpu", only=("fused",))
    assert (results["fused: not finite"].verdict, results["fused: not finite"].value) == (FAIL, 2 * STEPS)
    json.loads((tmp_path / "gpu_acceptance.json").read_text(), parse_constant=pytest.fail)


def test_a_metric_that_is_missing_fails_its_check_alone(tmp_path: Path) -> None:
    clock = Clock()
    actions = canned(clock)

    with_all = actions["grpo"].do

    def without(evidence: Evidence, limit_s: float) -> None:
        with_all(evidence, limit_s=limit_s)
        del evidence.steps["grpo"][2]["rollout_corr/k3_kl"]

    actions["grpo"] = Action("grpo", 180, 75, without)
    results = run(tmp_path, actions, clock=clock)
    assert results["grpo: KL"].verdict == FAIL
    assert results["grpo: KL"].why == "grpo: rollout_corr/k3_kl isn't in metrics.jsonl at step 2"
    assert verdicts(results, but=(*PLANNED, "grpo: KL")) == {PASS}


def test_memory_that_isnt_given_back_fails(tmp_path: Path) -> None:
    clock = Clock()
    actions = canned(clock)
    fused = actions["fused"].do

    def awake(evidence: Evidence, limit_s: float) -> None:
        fused(evidence, limit_s=limit_s)
        evidence.gpu_memory[:] = [(moment, 40.0 * GIB) for moment, _ in evidence.gpu_memory]

    results = run(tmp_path / "1", {**actions, "fused": Action("fused", 240, 100, awake)}, clock=clock)
    assert (results["sleep"].verdict, results["sleep"].value) == (FAIL, 0)

    def unseen(evidence: Evidence, limit_s: float) -> None:
        fused(evidence, limit_s=limit_s)
        evidence.gpu_memory.clear()

    results = run(tmp_path / "2", {**actions, "fused": Action("fused", 240, 100, unseen)}, clock=clock)
    assert results["sleep"].verdict == FAIL and "no sample of the GPU's memory" in results["sleep"].why


def test_a_failed_action_stops_only_what_builds_on_it(tmp_path: Path) -> None:
    clock = Clock()
    actions = canned(clock)
    actions["fused"] = Action("fused", 240, 100, failing("command: 1\nTraceback\nerror: no kernel image\nbye"))
    results = run(tmp_path, actions, clock=clock)
    assert (results["fused"].verdict, results["fused"].why) == (FAIL, "error: no kernel image")
    for name in ("resumed", "export", "save", "sleep", "fused: KL", "FlowRL / GRPO: time", "fused / unfused: memory"):
        assert (results[name].verdict, results[name].why) == (NOT_RUN, "fused failed")
    for name in ("grpo", "grpo: KL", "large: clipped", "unfused: not finite", "pair", "pair: KL"):
        assert results[name].verdict == PASS


def test_what_doesnt_begin_in_the_budget_is_out_of_time(tmp_path: Path) -> None:
    clock = Clock()
    results = run(tmp_path, canned(clock), clock=clock, budget_s=200)
    assert results["resumed"].verdict == PASS
    for name in ("grpo", "grpo: KL", "large", "pair: KL", "FlowRL / GRPO: time", "exported"):
        assert (results[name].verdict, results[name].why) == (NOT_RUN, OUT_OF_TIME)


def test_an_action_that_the_budget_cuts_short_is_out_of_time_and_has_no_more_than_that(tmp_path: Path) -> None:
    clock = Clock()
    actions = canned(clock)
    limits = []

    def too_long(evidence: Evidence, limit_s: float) -> None:
        limits.append(limit_s)
        clock.time += limit_s
        raise ChildError(f"no end after {limit_s:.0f} s")

    actions["grpo"] = Action("grpo", 180, 75, too_long)
    results = run(tmp_path, actions, clock=clock, budget_s=300)
    assert 0 < limits[0] < 180
    assert (results["grpo"].verdict, results["grpo"].why) == (NOT_RUN, OUT_OF_TIME)
    own_limit = run(tmp_path / "2", actions, clock=clock, budget_s=10000)
    assert own_limit["grpo"].verdict == FAIL and "no end after 180 s" in own_limit["grpo"].why
    assert own_limit["large"].verdict == PASS


def test_it_is_written_after_each_action(tmp_path: Path) -> None:
    clock = Clock()
    actions = canned(clock)

    def interrupted(evidence: Evidence, limit_s: float) -> None:
        raise KeyboardInterrupt

    actions["grpo"] = Action("grpo", 180, 75, interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, actions, clock=clock)
    checks = {c["name"]: c for c in json.loads((tmp_path / "gpu_acceptance.json").read_text())["checks"]}
    assert checks["fused: KL"]["verdict"] == PASS
    assert (checks["grpo"]["verdict"], checks["grpo"]["why"]) == (NOT_RUN, STILL_TO_COME)


def test_on_a_cpu_what_needs_cuda_is_named(tmp_path: Path) -> None:
    clock = Clock()
    results = run(tmp_path, canned(clock, "cpu"), clock=clock, device="cpu")
    assert verdicts(results) == {PASS, NOT_RUN}
    without = {name for name, result in results.items() if result.why == NEEDS_CUDA}
    assert {"sleep", "step time", "FlowRL / GRPO: memory", *PLANNED} <= without
    assert not without & {"fused: KL", "save", "resume", "exported", "pair: KL", "large: clipped"}


def test_only_takes_what_it_builds_on_and_leaves_the_rest(tmp_path: Path) -> None:
    clock = Clock()
    results = run(tmp_path, canned(clock), clock=clock, only=("export",))
    assert results["models"].verdict == results["fused"].verdict == results["exported"].verdict == PASS
    assert (results["grpo"].verdict, results["grpo"].why) == (NOT_RUN, NOT_ASKED_FOR)
    assert (results["resume"].verdict, results["resume"].why) == (NOT_RUN, NOT_ASKED_FOR)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directories with the tiny shapes' weights under the names of the models."""
    directory = tmp_path_factory.mktemp("models")
    for name, shape in shapes("cpu").items():
        write_model(shape, directory / name)
    return directory


@pytest.mark.parametrize("device", ["cuda", "cpu"])
@pytest.mark.parametrize("name", RUNS)
def test_every_launch_is_accepted(
    models: Path, tmp_path: Path, name: str, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLOWRL_CACHE", str(tmp_path))
    given = [*overrides_of(RUNS[name], device, models), f"run_dir={tmp_path / 'run'}"]
    preflight.check_arguments(given)
    config = compose_unresolved(given)
    preflight.check(config, here=False)  # all but this machine's
    config = compose_run(given)
    fsdp, rollout = config.actor_rollout_ref.actor.fsdp_config, config.actor_rollout_ref.rollout
    assert config.trainer.device == device and config.trainer.n_gpus_per_node * config.trainer.nnodes == 1
    assert config.actor_rollout_ref.model.use_fused_kernels == (name != "unfused")
    assert config.data.train_batch_size == config.actor_rollout_ref.actor.ppo_mini_batch_size  # one mini-batch a step
    assert rollout.calculate_log_probs and rollout.n == 4
    assert (config.flowrl is None) == (name == "grpo")
    if device == "cuda":
        assert fsdp.param_offload and fsdp.optimizer_offload and rollout.free_cache_engine
        assert rollout.dtype == "bfloat16"


@pytest.mark.parametrize("gpu", ["h100_80gb", "h200_141gb"])
@pytest.mark.parametrize("name", RUNS)
def test_every_launch_fits_on_the_gpu(tmp_path: Path, name: str, gpu: str) -> None:
    config = compose_run(overrides_of(RUNS[name], "cuda", tmp_path))
    shape = shapes("cuda")[RUNS[name].model]
    sizes = shape_of({**shape.architecture, "vocab_size": shape.vocabulary}, config.flowrl)
    memory = plan_memory(config, sizes, GPUS[gpu])
    assert problems(config, memory, GPUS[gpu]) == []


def test_the_shapes_are_those_of_the_published_models() -> None:
    billions = {
        name: shape_of({**shape.architecture, "vocab_size": shape.vocabulary}, None).parameters / 1e9
        for name, shape in shapes("cuda").items()
        if name.startswith("qwen")
    }
    # 0.494 B and a head of 0.136 B; 1.544 B: the model cards'.
    assert billions == {
        "qwen2.5-0.5b-untied": pytest.approx(0.494 + 0.136, abs=0.001),
        "qwen2.5-1.5b": pytest.approx(1.544, abs=0.001),
    }


def test_the_vocabulary_is_the_tokenizers_and_text_takes_bytes(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    shape = Shape(64, 128, 1, 2, 1, tie_word_embeddings=False, vocabulary=400)
    assert write_model(shape, tmp_path) == exported_parameters(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert len(tokenizer) == len(tokenizer_of(400)) == 400
    text = "44, 19: filler3\nµ"
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert len(ids) == len(text.encode()) and tokenizer.decode(ids) == text


def test_one_line_says_what_was_wrong() -> None:
    assert in_one_line(ChildError("python -m x: 1\nerror: out of memory\n")) == "error: out of memory"
    assert in_one_line(ChildError("python -m x: no end after 5 s")) == "python -m x: no end after 5 s"
    assert in_one_line(OSError()) == "OSError"


def test_without_a_gpu_it_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(["--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: nvidia-smi shows no GPU") and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("option", [["--budget-s", "30"], ["--budget-s", "nan"], ["--slowness", "0"], ["--only", "x"]])
def test_options_that_cant_work_are_refused(option: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as error:
        main(option)
    assert error.value.code == 2 and option[0] in capsys.readouterr().err


def test_the_gpu_is_read_from_nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = tmp_path / "nvidia-smi"
    fake.write_text(
        '#!/bin/sh\ncase "$*" in *lms*) while echo 1024; do sleep 0.05; done;; '
        '*) [ "$2" = 1 ] && echo "NVIDIA H200, 143771, 580.1";; esac\n'
    )
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1,2")
    assert acceptance_runs.gpu_facts() == {"name": "NVIDIA H200", "memory_bytes": 143771 * 2**20, "driver": "580.1"}
    samples: list[tuple[float, float]] = []
    with acceptance_runs.GpuMemoryRecorder(samples):
        while len(samples) < 3:
            time.sleep(0.01)
    assert {size for _, size in samples} == {GIB}
