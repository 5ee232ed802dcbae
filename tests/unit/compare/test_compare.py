"""Studies: pass@k against brute force, the bootstrap's coverage, sampling, the report, the order of the runs."""

import io
import json
import subprocess
import sys
import threading
import time
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import recipe.flowrl.compare.run_study as compare
from recipe.flowrl.__main__ import main
from recipe.flowrl.common.errors import UserError
from recipe.flowrl.common.project import PROJECT
from recipe.flowrl.common.statistics import bootstrap, pass_at_k, powers_of_two
from recipe.flowrl.compare import outcomes as evaluation
from recipe.flowrl.compare.comparisons import differences, pairs, run_to_run, summary
from recipe.flowrl.compare.studies import STUDIES, Study, Variant
from recipe.flowrl.compare.study_report import _coverage_figure, _systems, write_report
from recipe.flowrl.reporting.console import RunConsole
from recipe.flowrl.tasks.sampling import sample, sequence_log_probs
from recipe.flowrl.tasks.tiny_qwen2 import TinyQwen2Config, build

CONFIGS = PROJECT / "configs"


@pytest.mark.parametrize("n", [1, 4, 7])
def test_pass_at_k_is_the_share_of_k_subsets_with_a_right_answer(n: int) -> None:
    for correct in range(n + 1):
        answers = [True] * correct + [False] * (n - correct)
        for k in range(1, n + 1):
            expected = np.mean([any(chosen) for chosen in combinations(answers, k)])
            assert pass_at_k(np.array([correct]), n, k)[0] == pytest.approx(expected)


@pytest.mark.parametrize("k", [0, 5])
def test_pass_at_k_refuses_more_attempts_than_samples(k: int) -> None:
    with pytest.raises(ValueError, match="must be in 1..4"):
        pass_at_k(np.array([1]), 4, k)


def test_powers_of_two() -> None:
    assert powers_of_two(64) == [1, 2, 4, 8, 16, 32, 64]
    assert powers_of_two(20) == [1, 2, 4, 8, 16]


def test_bootstrap_intervals_cover_the_truth() -> None:
    """95% intervals of data whose mean is known hold it in about 95% of the cases: puzzles vary, seeds a little."""
    rng = np.random.default_rng(3)
    hits, cases = 0, 200
    for case in range(cases):
        puzzles = rng.normal(0.3, 0.2, size=40)
        values = puzzles + rng.normal(0.0, 0.05, size=(3, 40))
        _, low, high = bootstrap(values, seed=case)
        hits += low <= 0.3 <= high
    assert 0.88 <= hits / cases <= 0.99


def test_bootstrap_of_equal_values_is_a_point() -> None:
    assert bootstrap(np.full((2, 5), 0.5)) == pytest.approx((0.5, 0.5, 0.5))


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    directory = tmp_path_factory.mktemp("policy")
    build(directory, TinyQwen2Config(hidden_size=64, layers=1, heads=2, intermediate_size=64))
    return AutoModelForCausalLM.from_pretrained(directory), AutoTokenizer.from_pretrained(directory)


def test_sampling_is_repeatable_and_scored_like_single_sequences(policy: tuple[Any, Any]) -> None:
    model, tokenizer = policy
    prompts = ["1 2 -> 3", "10 20 30 -> 4"]  # of different lengths: one is padded
    drawn = [sample(model, tokenizer, prompts, 3, temperature=1.0, max_new_tokens=5, seed=1) for _ in range(2)]
    assert drawn[0].texts == drawn[1].texts and len(drawn[0].texts) == 6
    log_probs = sequence_log_probs(model, drawn[0])
    for row in range(6):
        tokens = drawn[0].rows[row][drawn[0].attention[row]].unsqueeze(0)
        length = int(drawn[0].response_mask[row].sum())
        with torch.no_grad():
            steps = model(tokens).logits[0, :-1].log_softmax(-1)
        expected = steps.gather(-1, tokens[0, 1:, None])[-length:].sum()
        assert log_probs[row].item() == pytest.approx(expected.item(), abs=1e-4)


def test_cold_samples_are_what_the_model_alone_says_for_each_prompt(policy: tuple[Any, Any]) -> None:
    """Reading a padded prompt once for all its samples changes nothing."""
    model, tokenizer = policy
    prompts = ["1 2 -> 3", "10 20 30 -> 4"]
    drawn = sample(model, tokenizer, prompts, 3, temperature=1e-4, max_new_tokens=8)
    for row, prompt in enumerate(prompt for prompt in prompts for _ in range(3)):
        turn = [{"role": "user", "content": prompt}]
        text = tokenizer.apply_chat_template(turn, add_generation_prompt=True, tokenize=False)
        tokens = tokenizer(text, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            for _ in range(8):
                tokens = torch.cat([tokens, model(tokens).logits[:, -1].argmax(-1, keepdim=True)], dim=1)
        assert drawn.rows[row, -8:].tolist() == tokens[0, -8:].tolist()
    assert sequence_log_probs(model, drawn).view(2, 3).std(-1).tolist() == [0.0, 0.0]


def measured(correct: list[int], distinct: list[int]) -> dict[str, Any]:
    rows = {"correct": correct, "distinct": distinct}
    entropy = {"entropy": [1.0] * len(correct), "kl_to_base": [0.0] * len(correct)}
    return {"exist": [10] * len(correct), "0.2": rows, "0.4": rows, "0.6": rows, "1.0": rows | entropy}


def test_summary() -> None:
    result = summary([measured([16, 0], [5, 0]), measured([16, 16], [5, 10])], 1.0, 16)
    assert result["avg@16"][0] == pytest.approx(0.75)
    assert result["pass@16"][0] == pytest.approx(0.75)
    assert result["coverage"][0] == pytest.approx(0.5)
    assert result["avg@16"][1] <= 0.75 <= result["avg@16"][2]


def a_run(evaluation: dict[str, Any], base_policy: str = "b1") -> dict[str, Any]:
    return {"base_policy": base_policy, "evaluation": evaluation}


def test_differences_are_paired_by_puzzle_and_seed() -> None:
    """Puzzles differ much more than the two systems do: unpaired intervals would hold zero."""
    mine = {str(seed): a_run(measured([16, 1 + seed], [5, 1])) for seed in (0, 1, 2)}
    theirs = {str(seed): a_run(measured([15, seed], [5, 1])) for seed in (2, 1, 0)}
    found = differences(mine, theirs, 1.0, 16)
    assert found["avg@16"] == pytest.approx((1 / 16, 1 / 16, 1 / 16))
    assert found["coverage"] == pytest.approx((0, 0, 0))
    only_one = differences(mine, {"1": theirs["0"]}, 1.0, 16)
    assert only_one["avg@16"][0] == pytest.approx((1 + 2) / 2 / 16), "the seed that both have"
    assert differences(mine, {"3": theirs["0"]}, 1.0, 16) == {}


def test_only_runs_from_the_same_base_policy_make_a_pair() -> None:
    mine = {"0": a_run(measured([4], [1])), "1": a_run(measured([8], [1]), "b2")}
    theirs = {"0": a_run(measured([3], [1])), "1": a_run(measured([0], [1]))}
    assert pairs(mine, theirs) == ["0"]
    assert differences(mine, theirs, 1.0, 16)["avg@16"] == pytest.approx((1 / 16, 1 / 16, 1 / 16))


def test_run_to_run_is_the_spread_of_runs_of_one_system() -> None:
    """Of synthetic runs whose spread is known, whatever the systems' own means and the puzzles are."""
    rng = np.random.default_rng(5)
    runs = {}
    for system in range(200):
        puzzles = rng.normal(900 + system, 100, size=50)
        counts = [puzzles + rng.normal(0, 16) for _ in range(3)]
        runs[str(system)] = {str(seed): a_run(measured([0] * 50, [0] * 50)) for seed in range(3)}
        for seed, correct in enumerate(counts):
            runs[str(system)][str(seed)]["evaluation"]["1.0"]["correct"] = correct.clip(0, 2000).tolist()
    assert run_to_run(runs, 1.0, 2000)["avg@2000"] == pytest.approx(16 / 2000, rel=0.1)
    assert run_to_run({"one": {"0": runs["0"]["0"]}}, 1.0, 16) == {}


def test_run_to_run_holds_nothing_of_the_base_policies() -> None:
    runs = {str(seed): a_run(measured([4 + seed], [1])) for seed in (0, 1)}
    other = {str(seed): a_run(measured([10 + seed], [1]), "b2") for seed in (2, 3)}
    assert run_to_run({"grpo": runs | other}, 1.0, 16)["avg@16"] == pytest.approx(0.5**0.5 / 16)
    assert run_to_run({"grpo": {"0": runs["0"], "2": other["2"]}}, 1.0, 16) == {}


def test_report_shows_every_system(tmp_path: Path) -> None:
    record = {"curves": {"solve_rate": [[1, 2], [0.1, 0.2]]}, "grad_norm_max": 12.5, "non_finite_steps": [2]}
    run = a_run(measured([4, 8], [1, 2])) | {"lr": 1e-4, "training": record}
    facts = {"seeds": [0, 1], "steps": 2, "samples": 16}
    study = {
        "study": facts,
        "sweep": {},
        "lr": {"grpo": 1e-4, "flowrl": 1e-4},
        "base": {"b1": measured([2, 2], [1, 1])},
    }
    study["runs"] = {name: {"0": run, "1": run} for name in ("grpo", "flowrl")}
    (tmp_path / "countdown.json").write_text(json.dumps(study))
    html = write_report(tmp_path / "countdown.json").read_text()
    for part in ("base", "grpo", "flowrl", "12.5", "avg@16", "pass@16", "Against grpo", "base, T = 0.2"):
        assert part in html
    assert html.count("<svg") == 4 and "base policies" not in html and "Learning rates" not in html
    study["sweep"] = {name: {"0.0001": 0.312, "0.0002": 0.3} for name in ("grpo", "flowrl")}
    study["base"]["b2"] = study["base"]["b1"]
    (tmp_path / "countdown.json").write_text(json.dumps(study))
    html = write_report(tmp_path / "countdown.json").read_text()
    assert "The runs start from 2 base policies" in html
    assert "31.2 *" in html and "30.0" in html and "30.0 *" not in html


def test_report_of_one_system_compares_nothing(tmp_path: Path) -> None:
    record = {"curves": {"solve_rate": [[1], [0.1]]}, "grad_norm_max": 1.0, "non_finite_steps": []}
    study = {
        "study": {"seeds": [0], "steps": 1, "samples": 16},
        "lr": {"grpo": 1e-4},
        "sweep": {},
        "base": {"b1": measured([2], [1])},
    }
    study["runs"] = {"grpo": {"0": a_run(measured([4], [1])) | {"lr": 1e-4, "training": record}}}
    (tmp_path / "countdown.json").write_text(json.dumps(study))
    assert "Against" not in write_report(tmp_path / "countdown.json").read_text()


def test_names_in_the_figure_stand_apart_and_always_in_the_same_place() -> None:
    """Of the published study, whose points lie close together."""
    study = json.loads((PROJECT / "benchmarks" / "countdown" / "countdown.json").read_text())
    systems = _systems(study)

    def names() -> dict[str, Any]:
        figure = _coverage_figure(systems, {}, study["study"]["samples"], {})
        return {text.get_text(): text.get_window_extent() for text in figure.axes[0].texts}

    found = names()
    assert found.keys() >= systems.keys()
    assert [(a, b) for a, b in combinations(found, 2) if found[a].overlaps(found[b])] == []
    assert {name: box.bounds for name, box in names().items()} == {name: box.bounds for name, box in found.items()}


@pytest.mark.parametrize("study", STUDIES)
def test_studies_name_algorithms_that_exist(study: str) -> None:
    existing = {path.stem for path in (CONFIGS / "algo").glob("*.yaml")}
    assert {variant.algo for variant in STUDIES[study].variants.values()} <= existing


def test_one_name_is_one_run_in_all_studies_of_an_experiment() -> None:
    runs = [(study.experiment, variant) for study in STUDIES.values() for variant in study.variants.values()]
    for (here, first), (there, second) in combinations(runs, 2):
        assert first == second or first.name != second.name or here != there


def test_the_stack_decides_how_old_its_data_are() -> None:
    with pytest.raises(ValueError, match="trainer_mode"):
        Variant("both", "grpo", stack=True, staleness=8)


def test_the_countdown_study_has_the_whole_field() -> None:
    assert set(STUDIES["countdown"].variants) == {path.stem for path in (CONFIGS / "algo").glob("*.yaml")}


@pytest.mark.parametrize(
    ("argument", "part"),
    [
        (
            "study=contdown",
            "study=contdown: must be 'countdown' | 'ablations' | 'repeated' | 'change' | 'stale' | 'agreement' "
            "(did you mean 'countdown'?)",
        ),
        ("algos=grop", "algos=grop: not in study=countdown (did you mean"),
        ("seeds=a", "seeds=a: must be an integer >= 0"),
        ("steps=0", "steps=0: must be an integer >= 1"),
        ("samples=0", "samples=0: must be an integer >= 1"),
        ("steps", "expected KEY=VALUE"),
    ],
)
def test_bad_arguments(argument: str, part: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", argument, f"dir={tmp_path}"]) == 2
    assert part in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


class Runs:
    """Runs of a study that learn nothing; what was done, in order."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, best: float = 1e-4, fails: str = ""):
        self.base_policy = "b1"
        self.trained: list[tuple[str, int, float]] = []
        self.evaluated: list[Path] = []
        self.fails, self.best, self.together, self.most = fails, best, 0, 0
        self.lock, self.evaluating = threading.Lock(), threading.Lock()
        monkeypatch.setattr(compare, "_train", self.train)
        monkeypatch.setattr(compare, "prepare", lambda study, console: (Path("base"), Path("puzzles")))
        monkeypatch.setattr(evaluation, "weights_fingerprint", lambda base: self.base_policy)
        monkeypatch.setattr(evaluation, "evaluate", self.evaluate)
        monkeypatch.setattr(evaluation, "final_checkpoint", lambda run_dir: run_dir)
        monkeypatch.setattr(evaluation, "training_record", self.record)

    def train(self, study: Any, variant: Any, seed: int, lr: float, run_dir: Path, console: Any) -> None:
        with self.lock:
            if run_dir.exists():  # main_flowrl leaves a finished run alone
                return
            self.trained.append((variant.name, seed, lr))
            self.together += 1
            self.most = max(self.most, self.together)
        time.sleep(0.05)
        run_dir.mkdir(parents=True)
        with self.lock:
            self.together -= 1
        if variant.name == self.fails:
            raise UserError(f"{variant.name} failed")

    def evaluate(self, checkpoint: Path | None, *_: Any) -> dict[str, Any]:
        assert self.evaluating.acquire(blocking=False), "one at a time"
        time.sleep(0.02)
        self.evaluated.append(checkpoint)
        self.evaluating.release()
        return measured([8], [2])

    def record(self, run_dir: Path) -> dict[str, Any]:
        solved = float(f"lr_{self.best:g}" in run_dir.parts)
        return {"curves": {"solve_rate": [[1], [solved]]}, "grad_norm_max": 1.0, "non_finite_steps": []}


def study_of(*algos: str, **changes: Any) -> Study:
    variants = {algo: STUDIES["countdown"].variants[algo] for algo in algos}
    return replace(STUDIES["countdown"], variants=variants, **changes)


def run_it(study: Study, directory: Path, output: io.StringIO | None = None) -> dict[str, Any]:
    with RunConsole(output or io.StringIO()) as console:
        compare.run_study(study, directory, "countdown", console)
    return json.loads((directory / "countdown.json").read_text())


@pytest.mark.parametrize("jobs", [1, 2])
def test_runs_side_by_side(jobs: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = Runs(monkeypatch)
    found = run_it(study_of("flowrl", "grpo", seeds=(0, 1), jobs=jobs), tmp_path)
    assert [seed for _, seed, _ in runs.trained] == [0, 0, 1, 1], "all variants of a seed before the next"
    assert runs.most == jobs
    assert len(runs.evaluated) == 5
    assert {name: set(seeds) for name, seeds in found["runs"].items()} == dict.fromkeys(("flowrl", "grpo"), {"0", "1"})


def test_a_sweep_uses_the_best_and_does_no_run_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = Runs(monkeypatch, best=3e-4)
    found = run_it(study_of("grpo", seeds=(0, 1), lrs=(1e-4, 3e-4)), tmp_path, output := io.StringIO())
    assert runs.trained == [("grpo", 0, 1e-4), ("grpo", 0, 3e-4), ("grpo", 1, 3e-4)]
    counted = [line.split(",")[0] for line in output.getvalue().splitlines() if "ETA" in line]
    assert counted == [f"{done}/2 {what} done" for what in ("runs of the sweep", "runs") for done in (1, 2)]
    assert found["lr"] == {"grpo": 3e-4}
    assert found["sweep"] == {"grpo": {"0.0001": 0.0, "0.0003": 1.0}}
    assert {run["lr"] for run in found["runs"]["grpo"].values()} == {3e-4}


def test_a_sweep_asks_no_training_of_what_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = Runs(monkeypatch)
    done = tmp_path / "grpo" / "lr_0.0003" / "seed_0" / "evaluation.json"
    done.parent.mkdir(parents=True)
    training = {"curves": {"solve_rate": [[1], [2.0]]}, "grad_norm_max": 1.0, "non_finite_steps": []}
    done.write_text(json.dumps(a_run(measured([4], [1])) | {"lr": 3e-4, "training": training}))
    found = run_it(study_of("grpo", seeds=(0,), lrs=(1e-4, 3e-4)), tmp_path)
    assert runs.trained == [("grpo", 0, 1e-4)]
    assert found["lr"] == {"grpo": 3e-4}


def test_runs_of_another_length_are_not_taken_for_these(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = Runs(monkeypatch)
    run_it(study_of("grpo", seeds=(0,), steps=2), tmp_path)
    with pytest.raises(UserError, match="the runs there have steps=2, not 3: set it so, or another dir="):
        run_it(study_of("grpo", seeds=(0,), steps=3), tmp_path)
    run_it(study_of("grpo", seeds=(0, 1), steps=2, jobs=2), tmp_path)
    assert [seed for _, seed, _ in runs.trained] == [0, 1]


def test_a_study_continued_where_the_base_policy_is_another_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = Runs(monkeypatch)
    run_it(study_of("grpo", seeds=(0,)), tmp_path)
    runs.base_policy = "b2"
    found = run_it(study_of("grpo", seeds=(0, 1)), tmp_path, output := io.StringIO())
    assert "warning: this base policy, b2, isn't that of the runs" in output.getvalue()
    assert set(found["base"]) == {"b1", "b2"}
    assert {seed: run["base_policy"] for seed, run in found["runs"]["grpo"].items()} == {"0": "b1", "1": "b2"}
    assert set(run_it(study_of("grpo", seeds=(1,)), tmp_path)["base"]) == {"b2"}, "only those that runs start from"


def test_a_fingerprint_stands_for_the_weights(policy: tuple[Any, Any], tmp_path: Path) -> None:
    model, _ = policy
    model.save_pretrained(tmp_path / "one")
    model.save_pretrained(tmp_path / "two")
    assert evaluation.weights_fingerprint(tmp_path / "one") == evaluation.weights_fingerprint(tmp_path / "two")
    build(tmp_path / "three", TinyQwen2Config(hidden_size=64, layers=1, heads=2, intermediate_size=64, seed=2))
    assert evaluation.weights_fingerprint(tmp_path / "one") != evaluation.weights_fingerprint(tmp_path / "three")


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_failure_stops_no_other_run(jobs: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = Runs(monkeypatch, fails="flowrl")
    study = study_of("flowrl", "grpo", "rloo", seeds=(0,), jobs=jobs)
    with pytest.raises(UserError, match="flowrl failed: the same command tries again"):
        run_it(study, tmp_path)
    assert {name for name, *_ in runs.trained} == {"flowrl", "grpo", "rloo"}
    assert set(json.loads((tmp_path / "countdown.json").read_text())["runs"]) == {"grpo", "rloo"}
    runs.fails = ""
    assert set(run_it(study, tmp_path)["runs"]) == {"flowrl", "grpo", "rloo"}


def test_an_interrupted_study_ends_though_runs_had_not_begun() -> None:
    """In a process of its own, which is killed if it hangs."""
    program = """
import os, signal, sys, time
from recipe.flowrl.compare.run_study import side_by_side
from recipe.flowrl.reporting.console import RunConsole

signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it

def interrupt():
    time.sleep(1)  # until the others wait
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(1)

with RunConsole(sys.stdout) as console:
    side_by_side([interrupt, lambda: print("begun")], 2, "runs", 1, console)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, cwd=PROJECT)
    assert "KeyboardInterrupt" in done.stderr and "begun" not in done.stdout


def test_what_is_no_failed_training_stops_the_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = Runs(monkeypatch)
    monkeypatch.setattr(evaluation, "final_checkpoint", lambda run_dir: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run_it(study_of("flowrl", "grpo", "rloo", "ppo"), tmp_path)
    assert len(runs.trained) <= 2, "one may have begun before the failure was known"
