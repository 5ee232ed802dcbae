"""report.html, from run directories made up by `synthetic_run` (its numbers come from formulas, not from training)."""

import base64
import hashlib
import json
import math
import random
import re
import subprocess
import sys
import time
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import yaml

from recipe.flowrl.common.project import PROJECT
from recipe.flowrl.reporting.catalogue import phases
from recipe.flowrl.reporting.figures import smooth, thin
from recipe.flowrl.reporting.run_records import Metrics, Series, load_run
from recipe.flowrl.reporting.run_report import shorten, write_report

HOSTILE = "</script><script>alert(1)</script><img src=http://x.test/a.png onerror=alert(1)> & $\\frac{$ \x1b[31m \ud800"


def synthetic_run(path: Path, algo: str = "flowrl", steps: int = 60, puzzles: int = 24) -> Path:
    """A run directory as a finished run leaves it, with made-up numbers."""
    rng = random.Random(0)
    path.mkdir(parents=True)
    (path / "validation").mkdir()
    every = max(1, steps // 6)
    with (path / "metrics.jsonl").open("w") as out:
        for step in range(steps + 1):
            row = _training_row(step, steps, algo, rng) if step else {}
            row |= _validation_row(step / steps, rng) if step % every == 0 else {}
            out.write(json.dumps({"step": step} | row) + "\n")
            if step % every == 0:
                _dump(path / f"validation/{step}.jsonl", step, step / steps, puzzles, rng)
    config = {
        "actor_rollout_ref": {"model": {"path": "outputs/base/countdown"}, "rollout": {"n": 8}},
        "data": {"train_files": ["data/countdown/train.parquet"], "train_batch_size": 32},
        "ray_kwargs": {"ray_init": {"runtime_env": {"env_vars": {"WANDB_API_KEY": "tell-nobody"}}}},
        "trainer": {"nnodes": 1, "n_gpus_per_node": 1, "total_training_steps": steps},
    }
    (path / "config.yaml").write_text(yaml.safe_dump(config))
    record = {"algo": algo, "experiment": "countdown_cpu", "attempts": 1, "exit_status": 0}
    record |= {"started": "2026-01-02T10:00:00+00:00", "finished": "2026-01-02T10:04:10+00:00"}
    (path / "run.json").write_text(json.dumps(record))
    (path / "base_policy.json").write_text(json.dumps({"solve_rate": 0.31, "parameters": 3_200_000}))
    return path


def _training_row(step: int, steps: int, algo: str, rng: random.Random) -> dict[str, float]:
    t = step / steps

    def noisy(value: float, spread: float = 0.05) -> float:
        return value * (1 + rng.gauss(0, spread))

    seconds = {"gen": 0.9, "old_log_prob": 0.2, "ref": 0.2, "adv": 0.01, "update_actor": 0.45, "update_weights": 0.06}
    seconds = {f"timing_s/{k}": noisy(v, 0.1) for k, v in seconds.items()}
    row = {
        "train/solve_rate": noisy(0.31 + 0.35 * t, 0.1),
        "train/distinct_solutions": noisy(1.2 + 0.8 * t, 0.1),
        "train/solution_coverage": noisy(0.26 + 0.18 * t, 0.1),
        "critic/score/mean": noisy(0.31 + 0.35 * t, 0.1),
        "actor/entropy": noisy(0.9 - 0.3 * t),
        "actor/grad_norm": 1.5 * math.exp(rng.gauss(0, 0.3)),
        "actor/clipped_update": 0.5,
        "actor/lr": 1e-4 * min(1, step / 5),
        "response_length/mean": noisy(14 - t),
        "response_length/max": 24,
        "response_length/clip_ratio": abs(rng.gauss(0.02, 0.01)),
        "training/rollout_probs_diff_max": 5e-7 * math.exp(rng.gauss(0, 0.5)),
        "training/rollout_probs_diff_mean": 2e-8 * math.exp(rng.gauss(0, 0.3)),
        "perf/throughput": noisy(4200),
        **seconds,
        "timing_s/step": sum(seconds.values()) + noisy(0.15),
    }
    if algo == "flowrl":
        row |= {
            "actor/flowrl/log_z": 0.3 * math.exp(-6 * t) - 0.05 + rng.gauss(0, 0.02),
            "actor/flowrl/residual": rng.gauss(0, 0.3),
            "actor/flowrl/residual_abs": noisy(11 - 2 * t),
            "actor/flowrl/importance_weight": noisy(1.0, 0.02),
            "actor/flowrl/target_log_odds": noisy(3.0, 0.1),
            "actor/flowrl/reference_share": noisy(0.3 * t, 0.02),
            "actor/flowrl/clip_fraction": abs(rng.gauss(0.1, 0.03)),
            "actor/flowrl/ref_kl": noisy(0.002 + 0.05 * t),
            "actor/loss": noisy(160 - 30 * t),
            "actor/flowrl/log_partition_grad_norm": 0.3 * math.exp(rng.gauss(0, 0.4)),
        }
    else:
        row |= {"actor/pg_loss": rng.gauss(0, 0.01), "actor/pg_clipfrac": 0.01, "actor/kl_loss": noisy(0.04 * t)}
    if step % 20 == 0:
        row["timing_s/save_checkpoint"] = 0.4
    if step % max(1, steps // 6) == 0:
        row["timing_s/testing"] = noisy(2.0)
    return row


def _validation_row(t: float, rng: random.Random) -> dict[str, float]:
    return {
        "val-core/countdown/acc/mean@8": 0.30 + 0.33 * t + rng.gauss(0, 0.01),
        "val-core/countdown/acc/best@8/mean": 0.72 + 0.15 * t,
        "val/countdown/distinct_solutions": 1.3 + 0.9 * t,
        "val/countdown/solution_coverage": 0.28 + 0.2 * t,
    }


def _dump(path: Path, step: int, t: float, puzzles: int, rng: random.Random) -> None:
    """In the form of verl's validation dump: the uid is new at each validation, the prompt is not."""
    rows = []
    for index in range(puzzles):
        numbers, exist = [index % 9 + 1, 3, 7], 2 + index % 6
        truth = json.dumps({"numbers": numbers, "target": 20 + index, "n_solutions": exist})
        for sample in range(8):
            correct = rng.random() < (0.15 + 0.4 * t + 0.02 * (index % 15))
            solution = f"({numbers[0]} + {rng.randrange(exist)}) * 3" if correct else None
            output = solution or f"{numbers[0]} * 7 - {rng.randrange(4)}"
            rows.append(
                {
                    "input": f"system\nuser\nUse the numbers {numbers} to reach {20 + index}.\nassistant\n",
                    "output": output,
                    "gts": truth,
                    "score": float(correct),
                    "step": step,
                    "acc": float(correct),
                    "solution": solution,
                    "uid": f"{step}-{index}_{sample}_0",
                }
            )
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


class _Page(HTMLParser):
    """Collects what the tests ask about a page."""

    def __init__(self, html: str):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.headings: list[str] = []
        self.scripts: list[str] = []
        self._inside = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._inside = tag

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside in ("h1", "h2", "h3"):
            self.headings.append(data.strip())
        if self._inside == "script":
            self.scripts.append(data)

    def ids(self) -> list[str]:
        return [attrs["id"] for _, attrs in self.tags if attrs.get("id")]


def _report(run_dir: Path) -> tuple[str, _Page]:
    html = write_report(run_dir).read_text(encoding="utf-8")
    return html, _Page(html)


@pytest.fixture(scope="module")
def flowrl_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return synthetic_run(tmp_path_factory.mktemp("runs") / "flowrl")


@pytest.fixture(scope="module")
def flowrl_page(flowrl_run: Path) -> tuple[str, _Page]:
    return _report(flowrl_run)


def test_flowrl_report_shows_every_figure(flowrl_page):
    html, page = flowrl_page
    figures = {attrs["id"] for tag, attrs in page.tags if tag == "figure"}
    assert figures == {
        *("solve-rate", "reward", "distinct-solutions", "solution-coverage", "puzzles", "log-z", "residual"),
        *("importance-weight", "clip-fraction", "loss", "ref-kl", "probs-diff", "entropy", "response-length"),
        *("length-clip", "grad-norm", "throughput", "phases", "sharpness", "reference-share", "clipped-updates"),
    }
    assert "Not shown" not in html
    assert "FlowRL · countdown_cpu" in page.headings and "Sample generations" in page.headings
    assert "4 min 10 s" in html and "finished" in html


def test_headline_compares_the_last_validation_with_the_first(tmp_path):
    rows = [{"step": 0, "val-core/countdown/acc/mean@8": 0.25}, {"step": 9, "val-core/countdown/acc/mean@8": 0.625}]
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)))
    html, _ = _report(tmp_path)
    assert re.search(r'class="start">25\.0%</span><span class="arrow">→</span>62\.5%', html)


def test_page_needs_nothing_from_outside(flowrl_page):
    html, page = flowrl_page
    loads = [(tag, attrs) for tag, attrs in page.tags if tag in ("link", "img", "iframe", "object", "embed", "base")]
    assert loads == []
    references = [v for _, attrs in page.tags for k, v in attrs.items() if k in ("src", "href", "xlink:href", "action")]
    assert references and all(v.startswith("#") for v in references)
    assert not re.search(r"@import|url\((?!#)", html)
    assert "http://" not in html and "https://" not in html


def test_ids_are_unique_and_every_reference_has_its_target(flowrl_page):
    html, page = flowrl_page
    ids = page.ids()
    assert len(ids) == len(set(ids))
    targets = re.findall(r'(?:xlink:href="|url\()#([^")]+)', html)
    assert targets and set(targets) <= set(ids)


def test_figures_use_the_colours_of_the_page_only(flowrl_page):
    html, _ = flowrl_page
    drawn = "".join(re.findall(r"<svg.*?</svg>", html, flags=re.S))
    assert "var(--violet)" in drawn
    # Black is what matplotlib falls back to; it must not be left anywhere, or dark mode is unreadable.
    assert not re.search(r"(?:fill|stroke|color): ?(?:#|black|white)", drawn)


def test_only_script_that_may_run_is_the_one_whose_hash_is_named(flowrl_page):
    html, page = flowrl_page
    allowed = re.search(r"script-src 'sha256-([^']+)'", html)[1]
    digest = base64.b64encode(hashlib.sha256(page.scripts[-1].encode()).digest()).decode()
    assert digest == allowed
    readouts = [json.loads(text) for text in page.scripts[:-1]]
    assert len(readouts) == 21
    assert all(len(s["values"]) == len(r["x"]) == len(r["titles"]) for r in readouts for s in r["series"])


def test_size_and_time_also_for_a_long_run(tmp_path):
    run = synthetic_run(tmp_path / "long", steps=12_000, puzzles=300)
    started = time.monotonic()
    path = write_report(run)
    assert path.stat().st_size < 1_500_000
    assert time.monotonic() - started < 15, "5 s on an idle machine; three times that on a busy one"


def test_grpo_report_leaves_out_what_does_not_apply(tmp_path):
    html, page = _report(synthetic_run(tmp_path / "grpo", algo="grpo"))
    figures = {attrs["id"] for tag, attrs in page.tags if tag == "figure"}
    assert not figures & {"log-z", "residual", "importance-weight"}
    assert {"solve-rate", "clip-fraction", "ref-kl", "phases", "puzzles"} <= figures
    assert "log Z" not in html and "Not shown" not in html
    assert "GRPO · countdown_cpu" in page.headings


def test_missing_metrics_are_named_not_fatal(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "actor/entropy": 0.5}\n')
    html, page = _report(tmp_path)
    assert [attrs["id"] for tag, attrs in page.tags if tag == "figure"] == ["entropy"]
    assert "Not shown – Reward: metrics.jsonl has no critic/score/mean" in html
    assert "calculate_log_probs=True" in html and "No config.yaml" in html and "No validation dump" in html


def test_repeated_steps_keep_the_last_value_and_lose_nothing(tmp_path):
    lines = [
        {"step": 0, "val-core/a/acc/mean@4": 0.1},
        {"step": 1, "critic/score/mean": 0.1},
        {"step": 2, "critic/score/mean": 0.2},
        {"step": 3, "critic/score/mean": 0.9},
        # Resumed from the checkpoint of step 2: its initial validation, then step 3 once more.
        {"step": 2, "val-core/a/acc/mean@4": 0.3},
        {"step": 3, "critic/score/mean": 0.4},
    ]
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)) + '\n{"step": 4, "critic/sco')
    run = load_run(tmp_path)
    assert run.metrics["critic/score/mean"].steps.tolist() == [1, 2, 3]
    assert run.metrics["critic/score/mean"].values.tolist() == [0.1, 0.2, 0.4]
    assert run.metrics["val-core/a/acc/mean@4"].values.tolist() == [0.1, 0.3]
    assert "metrics.jsonl: line 7 is not a JSON object and is left out." in run.notes


def test_values_that_are_not_finite_are_reported(tmp_path):
    lines = [f'{{"step": {step}, "actor/grad_norm": {value}}}\n' for step, value in ((1, "NaN"), (2, 1.5), (3, "null"))]
    (tmp_path / "metrics.jsonl").write_text("".join(lines))
    run = load_run(tmp_path)
    assert run.metrics["actor/grad_norm"].steps.tolist() == [2]
    assert "actor/grad_norm is not finite at step 1, 3; those points are left out." in run.notes


def test_skipped_updates_are_reported(tmp_path):
    lines = [f'{{"step": {step}, "actor/skipped_update": {share}}}\n' for step, share in ((1, 0.0), (2, 0.5), (3, 1.0))]
    (tmp_path / "metrics.jsonl").write_text("".join(lines))
    assert "Updates were skipped at step 2, 3: their loss or gradient was not finite." in load_run(tmp_path).notes
    (tmp_path / "metrics.jsonl").write_text(lines[0])
    assert not [note for note in load_run(tmp_path).notes if "skipped" in note]


def test_text_of_the_model_stays_text(tmp_path):
    run = synthetic_run(tmp_path / "run", steps=6, puzzles=2)
    for name in ("0", "6"):
        row = {"input": HOSTILE, "output": HOSTILE, "gts": HOSTILE, "score": 1.0, "uid": "a_0_0", "solution": HOSTILE}
        (run / f"validation/{name}.jsonl").write_text(json.dumps(row))
    record = {"algo": HOSTILE, "experiment": HOSTILE, "exit_status": HOSTILE, "attempts": HOSTILE}
    (run / "run.json").write_text(json.dumps(record))
    (run / "base_policy.json").write_text(json.dumps({HOSTILE: HOSTILE}))
    with (run / "metrics.jsonl").open("a") as out:
        out.write(json.dumps({"step": 6, f"val-core/{HOSTILE}/acc/mean@8": 0.5, HOSTILE: 1.0}) + "\n")
    html, page = _report(run)
    assert "alert(1)" in html
    assert not [attrs for tag, attrs in page.tags if tag == "img" or "onerror" in attrs]
    assert [attrs for tag, attrs in page.tags if tag == "script" and attrs.get("type") != "application/json"] == [{}]
    assert "\x1b" not in html and "\ud800" not in html


def test_secrets_of_the_config_are_masked(flowrl_page):
    html, _ = flowrl_page
    assert "WANDB_API_KEY: &#39;***&#39;" in html and "tell-nobody" not in html


def test_solutions_are_counted_once_per_puzzle_and_only_if_correct(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "critic/score/mean": 0.1}')
    (tmp_path / "validation").mkdir()
    truth = json.dumps({"numbers": [1, 2, 3], "target": 6, "n_solutions": 4})
    answers = [("1-2-3", 0.0), ("1*2*3", 1.0), ("1+2+3", 1.0), ("1+2+3", 1.0)]
    rows = [
        {"input": "p", "output": a, "gts": truth, "score": acc, "acc": acc, "solution": a, "uid": f"u_{i}_0"}
        for i, (a, acc) in enumerate(answers)
    ]
    # An earlier turn of the first session: verl dumps it, but only the last turn is the answer.
    rows.insert(0, rows[0] | {"output": "thinking", "solution": "3*2*1"})
    rows[1]["uid"] = "u_0_1"
    (tmp_path / "validation/1.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (puzzle,) = load_run(tmp_path).last.puzzles
    assert (puzzle.found, puzzle.solved, puzzle.exist, len(puzzle.samples)) == (2, 3, 4, 4)
    html, _ = _report(tmp_path)
    assert "3 of 4 correct · 2 of 4 distinct solutions" in html
    # The most frequent correct answer first, wrong ones last, equal ones once.
    shown = re.findall(r'<li class="(right|wrong)">.*?<pre>(.*?)</pre><span>(×2)?', html)
    assert shown == [("right", "1+2+3", "×2"), ("right", "1*2*3", ""), ("wrong", "1-2-3", "")]


def test_same_puzzles_are_compared_although_their_uids_differ(flowrl_run, flowrl_page):
    run = load_run(flowrl_run)
    assert {p.key for p in run.first.puzzles} == {p.key for p in run.last.puzzles}
    html, _ = flowrl_page
    assert html.count("<h4>step 0 ") == html.count("<h4>step 60 ") == 6


def test_phases_add_up_to_the_time_of_steps_and_validations(tmp_path):
    first = {"step": 1, "timing_s/step": 5.0, "timing_s/gen": 3.0, "timing_s/update_actor": 1.0}
    second = {"step": 2, "timing_s/step": 4.0, "timing_s/gen": 4.5, "timing_s/testing": 2.0}
    (tmp_path / "metrics.jsonl").write_text(f"{json.dumps(first)}\n{json.dumps(second)}\n")
    steps, parts = phases(load_run(tmp_path))
    assert steps.tolist() == [1, 2]
    # Timers may overlap; what is left over is then 0, not negative.
    assert {part.label: part.seconds.tolist() for part in parts} == {
        "rollout": [3.0, 4.5],
        "actor update": [1.0, 0.0],
        "other": [1.0, 0.0],
        "validation": [0.0, 2.0],
    }


def test_dump_without_solutions_or_ground_truth(tmp_path):
    """What a data set without Countdown's ground truth and a reward function that returns a bare score leave."""
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "critic/score/mean": 0.1}')
    (tmp_path / "validation").mkdir()
    row = {"input": "What is 2+2?", "output": "4", "gts": None, "score": 1.0, "uid": "u_0_0"}
    (tmp_path / "validation/1.jsonl").write_text(json.dumps(row))
    html, page = _report(tmp_path)
    assert "1 of 1 correct</span>" in html and "puzzles" not in page.ids()


def test_reward_function_may_say_how_many_solutions_exist(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "critic/score/mean": 0.1}')
    (tmp_path / "validation").mkdir()
    row = {"input": "say a", "output": " \n", "gts": "a", "score": 0.0, "acc": 0.0, "solution": "", "n_solutions": 5.0}
    (tmp_path / "validation/1.jsonl").write_text(json.dumps(row | {"uid": "u_0_0"}))
    html, page = _report(tmp_path)
    assert "0 of 1 correct · 0 of 5 distinct solutions" in html and "puzzles" in page.ids() and "(empty)" in html


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (None, "no such file"),
        ("", "holds no step"),
        ("no json\n[1]", "holds no step"),
        ('{"loss": 1}', "holds no step"),
    ],
)
def test_malformed_run_directory_is_refused_in_one_line(tmp_path, content, complaint):
    if content is not None:
        (tmp_path / "metrics.jsonl").write_text(content)
    with pytest.raises(ValueError, match=complaint) as error:
        write_report(tmp_path)
    assert "metrics.jsonl" in str(error.value) and "\n" not in str(error.value)
    assert not list(tmp_path.glob("*report*"))


def test_command_line(tmp_path, flowrl_run):
    command = [sys.executable, "-m", "recipe.flowrl", "report"]
    root = PROJECT
    good = subprocess.run([*command, flowrl_run], cwd=root, capture_output=True, text=True)
    assert (good.returncode, good.stdout.strip()) == (0, str(flowrl_run / "report.html"))
    bad = subprocess.run([*command, tmp_path / "none"], cwd=root, capture_output=True, text=True)
    assert bad.returncode == 2 and bad.stdout == "" and len(bad.stderr.splitlines()) == 1
    assert "no such file or directory" in bad.stderr


def test_thinning_keeps_the_end_and_the_peak():
    series = Series(np.arange(1, 1001), np.where(np.arange(1000) == 417, 50.0, 1.0))
    thinned = thin(series, np.max, limit=100)
    assert len(thinned) == 100 and thinned.steps[-1] == 1000 and thinned.values.max() == 50.0
    assert thin(series, limit=1000) is series


def test_running_mean_neither_lags_nor_bends_a_constant():
    assert smooth(np.full(50, 3.0)) == pytest.approx(np.full(50, 3.0))
    step = smooth(np.repeat([0.0, 1.0], 100))
    assert step[100] - 0.5 == pytest.approx(0.5 - step[99]) and step[0] == 0 and step[-1] == 1


def test_start_and_end_average_a_tenth_of_the_run():
    metrics = Metrics({step: {"a": float(step)} for step in range(30)})
    assert (metrics["a"].start, metrics["a"].end, metrics["a"].width) == (1, 28, 3)


def test_long_text_keeps_both_ends():
    text = shorten("a" * 500 + "b" * 500, limit=100)
    assert text.startswith("a" * 50) and text.endswith("b" * 50) and "900 characters left out" in text
