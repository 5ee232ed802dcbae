"""Evaluations from the command to the report, with scripted responses in place of a model."""

import gzip
import io
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from real_data import REAL_DATA, needs_real_data

from recipe.flowrl.__main__ import main
from recipe.flowrl.common.errors import UserError
from recipe.flowrl.common.progress import Progress
from recipe.flowrl.evaluate.benchmarks import load
from recipe.flowrl.evaluate.contests import known_problems, problem_fingerprint
from recipe.flowrl.evaluate.evaluate_options import Options
from recipe.flowrl.evaluate.evaluation import evaluate
from recipe.flowrl.evaluate.generation import Completion, Request, Sampling, request_seed
from recipe.flowrl.evaluate.grading import grader_for
from recipe.flowrl.evaluate.records import Records
from recipe.flowrl.reporting.console import RunConsole
from recipe.flowrl.sandbox import bubblewrap
from recipe.flowrl.sandbox.choose import UNSAFE
from recipe.flowrl.tasks.code.data import code_task
from recipe.flowrl.tasks.math.reward import compute_score
from recipe.flowrl.tasks.parquet import prompt_row, write_rows
from recipe.flowrl.tasks.rows import read_rows

ANSWERS = {"1+1": "2", "2+2": "4", "1/2": r"\frac{1}{2}", "3*3": "9"}


class Scripted:
    """Says ``responses(problem, sample)``; dies after ``alive`` responses, if that is given."""

    def __init__(self, responses: Callable[[str, int], str], alive: int | None = None) -> None:
        self.responses, self.alive = responses, alive
        self.asked: list[tuple[str, int]] = []
        self.name = "scripted"

    def describe(self) -> dict[str, Any]:
        return {"name": self.name, "version": "1"}

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[tuple[Request, Completion]]:
        for request in reversed(requests):  # in an order of its own
            if self.alive is not None and len(self.asked) == self.alive:
                raise KeyboardInterrupt
            self.asked.append((request.problem.id, request.sample))
            text = self.responses(request.problem.prompt, request.sample)
            yield request, Completion(text, "length" if text.endswith("...") else "stop", len(text))

    @contextmanager
    def opened(self, options: Options, benchmarks: Sequence[Any]) -> Iterator["Scripted"]:
        yield self


def responses(problem: str, sample: int) -> str:
    """Right twice of four, as decimal once; a wrong answer; none."""
    right = "0.5" if problem == "1/2" else ANSWERS[problem]
    texts = [rf"So \boxed{{{ANSWERS[problem]}}}.", f"Answer: {right}", "Answer: 77", "I think that ..."]
    return texts[sample]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    directory = tmp_path / "data"
    for name, problems in (("amc23", list(ANSWERS)), ("math500", ["1+1"])):
        rows = [prompt_row(name, "math", text, ANSWERS[text], index, "test") for index, text in enumerate(problems)]
        write_rows(directory / f"test_{name}.parquet", rows)
    return directory


@pytest.fixture
def options(data: Path, tmp_path: Path) -> Options:
    return Options("org/model", "math", ("amc23",), data, tmp_path / "out", n=4, max_tokens=100)


def run(options: Options, engine: Scripted) -> tuple[dict[str, Any], str]:
    """The summary and what was said."""
    stream = io.StringIO()
    with RunConsole(stream) as console:
        benchmarks = load(options.suite, options.benchmarks, options.data, options.problems)
        summary = evaluate(options, benchmarks, console, engine.opened)
    return summary, stream.getvalue()


def lines(path: Path) -> list[dict[str, Any]]:
    with gzip.open(path, "rt") as file:
        return [json.loads(line) for line in file]


def test_an_evaluation(options: Options) -> None:
    summary, said = run(options, Scripted(responses))
    found = summary["benchmarks"]["amc23"]
    assert found["problems"] == 4 and found["n"] == 4
    assert found["avg_at_n"]["value"] == 0.5 and found["avg_at_n"]["stderr"] == 0.0
    assert found["pass_at_k"]["1"]["value"] == 0.5
    assert found["pass_at_k"]["2"]["value"] == pytest.approx(1 - 1 / 6)
    assert found["pass_at_k"]["4"]["value"] == 1.0
    assert found["maj_at_n"]["value"] == 1.0 and found["maj_at_n"]["tied"] == 0.0
    assert found["extraction_failed"] == found["truncated"] == 0.25
    assert found["per_problem_correct"] == {f"amc23/{index}": 2 for index in range(4)}
    assert json.loads((options.out / "summary.json").read_text()) == summary
    assert "amc23" in said and "50.0 ± 0.0" in said and "16/16" in said
    report = options.out / "report.html"
    drawn = report.read_text()
    report.unlink()
    assert main(["report", str(options.out)]) == 0 and report.read_text() == drawn


def test_repeated_problems_are_left_out_and_said(options: Options, data: Path) -> None:
    texts = list(ANSWERS) * 3
    rows = [prompt_row("amc23", "math", text, ANSWERS[text], index, "test") for index, text in enumerate(texts)]
    write_rows(data / "test_amc23.parquet", rows)
    summary, said = run(options, Scripted(responses))
    assert summary["benchmarks"]["amc23"]["problems"] == 4
    assert summary["protocol"]["benchmarks"]["amc23"]["repeated"] == 8
    assert "amc23: 8 rows repeat a problem and are left out" in said


@pytest.mark.parametrize(
    ("suite", "name", "reference"),
    [
        ("code", "livecodebench", "no tests"),
        ("code", "livecodebench", "[]"),
        ("countdown", "countdown", '{"numbers": 5}'),
        ("countdown", "countdown", "24"),
    ],
)
def test_a_reference_that_cannot_be_graded_costs_no_sample(
    suite: str, name: str, reference: str, data: Path, tmp_path: Path
) -> None:
    file = "test.parquet" if suite == "countdown" else f"test_{name}.parquet"
    good = {"code": '{"inputs": ["1"], "outputs": ["1"]}'}
    good["countdown"] = '{"numbers": [1, 2], "target": 3, "n_solutions": 1}'
    truths = [good[suite], reference]
    write_rows(data / file, [prompt_row(name, suite, f"p{i}", text, i, "test") for i, text in enumerate(truths)])
    options = Options("org/model", suite, (name,), data, tmp_path / "out", n=1, sandbox=UNSAFE)
    engine = Scripted(lambda *_: "x")
    with pytest.raises(UserError, match=f"{name}/1: reward_model.ground_truth can't be graded with"):
        run(options, engine)
    assert engine.asked == []


def test_a_reference_that_is_not_understood_is_told_before_generation(options: Options, data: Path) -> None:
    rows = [prompt_row("amc23", "math", text, truth, i, "test") for i, (text, truth) in enumerate(ANSWERS.items())]
    rows.append(prompt_row("amc23", "math", "unanswerable", "}{", 9, "test"))
    write_rows(data / "test_amc23.parquet", rows)
    engine = Scripted(lambda problem, sample: "none" if problem == "unanswerable" else responses(problem, sample))
    said = run(options, engine)[1]
    warning = "warning: amc23: 1 references that the grader doesn't understand"
    assert warning in said and "amc23/9" in said and said.index(warning) < said.index("generating")


def test_files(options: Options, data: Path) -> None:
    run(options, Scripted(responses))
    samples, grades = (lines(options.out / "amc23" / f"{name}.jsonl.gz") for name in ("samples", "grades"))
    assert len(samples) == len(grades) == 16
    by_place = {(record["problem"], record["sample"]): record for record in samples}
    assert by_place["amc23/2", 1] == {
        "problem": "amc23/2",
        "sample": 1,
        "prompt": "1/2",
        "response": "Answer: 0.5",
        "finish_reason": "stop",
        "tokens": 11,
    }
    graded = {(record["problem"], record["sample"]): record for record in grades}
    assert graded["amc23/2", 0]["answer"] == r"\frac{1}{2}" and graded["amc23/2", 0]["correct"]
    assert graded["amc23/2", 1]["group"] == graded["amc23/2", 0]["group"], "the same answer, written otherwise"
    assert graded["amc23/2", 3] | {"problem": "", "sample": 3} == {
        "problem": "",
        "sample": 3,
        "correct": False,
        "answer": None,
        "extracted": False,
        "timed_out": False,
        "grader_failed": False,
        "group": None,
    }
    protocol = json.loads((options.out / "protocol.json").read_text())
    assert protocol["engine"] == {"name": "scripted", "version": "1"}
    assert len(protocol["benchmarks"]["amc23"]["sha256"]) == 64
    page = (options.out / "report.html").read_text()
    assert "avg@4" in page and "50.0 ± 0.0" in page and page.count("<svg") == 2


@pytest.mark.parametrize("alive", [0, 1, 4, 7, 15])
def test_a_killed_evaluation_goes_on_where_it_was(options: Options, alive: int) -> None:
    whole, _ = run(replace(options, out=options.out / "whole"), Scripted(responses))
    with pytest.raises(KeyboardInterrupt):
        run(options, Scripted(responses, alive))
    engine = Scripted(responses)
    summary, said = run(options, engine)
    assert summary == whole
    assert len(engine.asked) == 16 - alive // 4 * 4, "problems that were done aren't done again"
    assert len(lines(options.out / "amc23" / "samples.jsonl.gz")) == 16


def test_a_kill_in_the_middle_of_a_write_loses_one_problem(options: Options) -> None:
    whole, _ = run(options, Scripted(responses))
    path = options.out / "amc23" / "samples.jsonl.gz"
    path.write_bytes(path.read_bytes()[:-9])
    engine = Scripted(responses)
    assert run(options, engine)[0] == whole
    assert len(engine.asked) == 4
    assert len(lines(path)) == 16


def test_a_second_time_nothing_is_generated(options: Options) -> None:
    first, _ = run(options, Scripted(responses))
    engine = Scripted(responses, alive=0)
    assert run(options, engine)[0] == first


def test_damage_within_a_file_is_refused(options: Options) -> None:
    run(options, Scripted(responses))
    path = options.out / "amc23" / "samples.jsonl.gz"
    content = bytearray(path.read_bytes())
    content[20] ^= 255
    path.write_bytes(content)
    with pytest.raises(UserError, match="damaged"):
        run(options, Scripted(responses))
    assert path.read_bytes() == content


def test_a_benchmark_can_be_added(options: Options) -> None:
    run(options, Scripted(responses))
    summary, _ = run(replace(options, benchmarks=("math500",)), Scripted(responses))
    assert list(summary["benchmarks"]) == list(summary["protocol"]["benchmarks"]) == ["amc23", "math500"]
    assert summary["benchmarks"]["math500"]["problems"] == 1


def test_problems_can_be_added(options: Options) -> None:
    run(replace(options, problems=2), Scripted(responses))
    engine = Scripted(responses)
    summary, _ = run(options, engine)
    assert {problem for problem, _ in engine.asked} == {"amc23/2", "amc23/3"}
    assert summary["protocol"]["benchmarks"]["amc23"]["problems"] == summary["benchmarks"]["amc23"]["problems"] == 4


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"temperature": 1.0}, "temperature: 0.6 there, 1.0 now"),
        ({"top_p": 1.0}, "top_p"),
        ({"n": 8}, "n: 4 there, 8 now"),
        ({"max_tokens": 5}, "max_tokens"),
        ({"seed": 1}, "seed"),
        ({"model": "org/other"}, "model"),
    ],
)
def test_samples_of_another_protocol_are_not_mixed(options: Options, change: dict[str, Any], named: str) -> None:
    run(replace(options, problems=2), Scripted(responses))
    with pytest.raises(UserError, match=named):
        run(replace(options, **change), Scripted(responses))


def test_another_engine_or_file_is_not_mixed(options: Options, data: Path) -> None:
    run(replace(options, problems=2), Scripted(responses))
    other = Scripted(responses)
    other.name = "another"
    with pytest.raises(UserError, match="engine"):
        run(options, other)
    write_rows(data / "test_amc23.parquet", [prompt_row("amc23", "math", "3*3", "9", 0, "test")])
    with pytest.raises(UserError, match="file of amc23"):
        run(options, Scripted(responses))


def test_grades_can_be_made_anew(options: Options) -> None:
    """Where the model isn't; and nothing is asked of an engine."""
    first, _ = run(options, Scripted(responses))
    path = options.out / "amc23" / "grades.jsonl.gz"
    path.write_bytes(gzip.compress(json.dumps({"problem": "amc23/0", "sample": 0}).encode()))
    again = replace(options, grade_only=True, model="elsewhere/model")
    assert run(again, Scripted(responses, alive=0))[0] == first
    assert len(lines(path)) == 16


def test_grade_only_wants_all_samples(options: Options) -> None:
    with pytest.raises(UserError, match="4 problems of amc23 have no samples"):
        run(replace(options, grade_only=True), Scripted(responses))


def test_another_grader_grades_all_anew(options: Options) -> None:
    """And what it hasn't graded yet isn't in the summary."""
    run(replace(options, benchmarks=("math500",)), Scripted(responses))
    run(options, Scripted(responses))
    protocol = json.loads((options.out / "protocol.json").read_text())
    (options.out / "protocol.json").write_text(json.dumps(protocol | {"grader": "an older one"}))
    path = options.out / "amc23" / "grades.jsonl.gz"
    path.write_bytes(gzip.compress(json.dumps({"problem": "amc23/0", "sample": 0}).encode()))
    summary, _ = run(options, Scripted(responses, alive=0))
    assert list(summary["benchmarks"]) == ["amc23"]
    assert {record["problem"] for record in lines(path)} == {f"amc23/{i}" for i in range(4)}


def test_two_systems_on_the_same_problems(options: Options, tmp_path: Path) -> None:
    worse = replace(options, out=tmp_path / "worse", model="org/worse", temperature=1.0)
    run(worse, Scripted(lambda problem, sample: responses(problem, sample) if sample else "no"))
    summary, said = run(replace(options, against=worse.out), Scripted(responses))
    found = summary["paired"]["benchmarks"]["amc23"]
    assert found["value"] == 0.25 and found["problems"] == 4
    assert found["p_value"] == pytest.approx(2 / 16), "all four differ, in one direction"
    assert summary["paired"]["protocol_differs"] == ["temperature: 0.6 here, 1.0 there"]
    assert "against org/worse" in said and "protocols differ: temperature" in said
    page = (options.out / "report.html").read_text()
    assert "The protocols differ (temperature: 0.6 here, 1.0 there)" in page and "+25.0" in page


def test_against_nothing_is_refused_before_anything_is_generated(options: Options, tmp_path: Path) -> None:
    engine = Scripted(responses)
    with pytest.raises(UserError, match="finish that evaluation first"):
        run(replace(options, against=tmp_path), engine)
    assert engine.asked == []


def test_against_other_problems(options: Options, tmp_path: Path) -> None:
    run(replace(options, out=tmp_path / "other", benchmarks=("math500",)), Scripted(responses))
    with pytest.raises(UserError, match="no problem in common"):
        run(replace(options, against=tmp_path / "other"), Scripted(responses))


def test_no_sandbox_is_found_before_anything_is_generated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("recipe.flowrl.sandbox.bubblewrap.problem", lambda: "no bwrap here")
    with pytest.raises(UserError, match="no bwrap here"):
        grader_for("code", "bubblewrap", None)
    assert "unsafe" in grader_for("code", UNSAFE, None).name
    assert "SandboxFusion" in grader_for("code", "bubblewrap", "http://h:8080").name


def test_a_grader_that_breaks_off_is_named(options: Options, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = {"acc": 0.0, "grader_failed": 1.0, "timed_out": 0.0}
    monkeypatch.setattr("recipe.flowrl.tasks.math.reward.compute_score", lambda *_, **__: broken)
    _, said = run(options, Scripted(responses))
    assert "amc23: the grader broke off over 100.0% of the responses" in said


def test_countdown(tmp_path: Path) -> None:
    """Votes go to solutions up to commutativity."""
    truth = json.dumps({"numbers": [1, 2, 3], "target": 7, "n_solutions": 1})
    write_rows(tmp_path / "test.parquet", [prompt_row("countdown", "arithmetic", "1 2 3 -> 7", truth, 0, "test")])
    options = Options("m", "countdown", ("countdown",), tmp_path, tmp_path / "out", n=4)
    texts = ["1 + 2 * 3", "3 * 2 + 1", "1 + 2 + 3", "what?"]
    found = run(options, Scripted(lambda problem, sample: texts[sample]))[0]["benchmarks"]["countdown"]
    assert found["avg_at_n"]["value"] == 0.5 and found["maj_at_n"]["value"] == 1.0
    assert found["extraction_failed"] == 0.25


def test_answers_that_cannot_be_compared_do_not_hold_up_the_votes(
    options: Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Large factorials: each takes the time limit once, against the right answer, and no more against each other."""
    compared = []
    monkeypatch.setattr("recipe.flowrl.tasks.math.reward.same_answer", lambda *pair, **_: compared.append(pair))
    monkeypatch.setattr("recipe.flowrl.tasks.math.reward.compute_score", partial(compute_score, limit_s=0.01))
    slow = [rf"\boxed{{\frac{{99999{digit}!}}{{999990!}}}}" for digit in (9, 8)]
    found = run(replace(options, problems=1, n=2), Scripted(lambda problem, sample: slow[sample]))[0]
    assert found["benchmarks"]["amc23"]["timed_out"] == 1.0
    assert found["benchmarks"]["amc23"]["maj_at_n"]["tied"] == 1.0, "each is its own"
    assert compared == []


@pytest.mark.skipif(bubblewrap.problem() is not None, reason="bubblewrap doesn't work here")
def test_code(tmp_path: Path) -> None:
    """Programs run in the sandbox; they don't vote; contests without standings are named."""
    tests = json.dumps([{"input": "2\n", "output": "4"}, {"input": "3", "output": "9"}])
    row = prompt_row("codeforces", "code", "Square it.", tests, 0, "test")
    write_rows(tmp_path / "test_codeforces.parquet", [row])
    options = Options("m", "code", ("codeforces",), tmp_path, tmp_path / "out", n=3)
    texts = ["```python\nprint(int(input()) ** 2)\n```", "```python\nprint(4)\n```", "no program"]
    summary, said = run(options, Scripted(lambda problem, sample: texts[sample]))
    found = summary["benchmarks"]["codeforces"]
    assert found["per_problem_correct"] == {"codeforces/0": 1}
    assert found["maj_at_n"] is None and found["extraction_failed"] == pytest.approx(1 / 3)
    assert found["rating"] is None and len(found["unrated_contests"]) == 57
    assert "of no known contest: codeforces/0" in said
    assert lines(options.out / "codeforces" / "grades.jsonl.gz")[0]["answer"] == "print(int(input()) ** 2)\n"


def test_seeds_depend_on_the_sample_alone(options: Options) -> None:
    seeds = [request_seed(seed, f"b/{i}", sample) for seed in (0, 1) for i in range(20) for sample in range(16)]
    assert len(set(seeds)) == len(seeds) and all(0 <= seed < 2**31 for seed in seeds)
    assert request_seed(0, "b/0", 0) == seeds[0]


def test_progress_has_rate_and_eta() -> None:
    said, clock = [], iter([0.0, 5.0, 20.0, 40.0])
    progress = Progress(said.append, "amc23", 16, done=4, now=lambda: next(clock))
    for _ in range(3):
        progress.add(4, tokens=100)
    assert said == ["amc23  12/16 samples  10 tokens/s  ETA 10s", "amc23  16/16 samples  8 tokens/s  in 40s"]


def test_progress_of_much_work_is_said_at_every_hundredth() -> None:
    said, clock = [], iter(range(0, 10**6, 11))
    progress = Progress(said.append, "math500", 8000, now=lambda: next(clock))
    for _ in range(8000):
        progress.add()
    assert len(said) == 100


def test_records_of_an_empty_file(tmp_path: Path) -> None:
    (tmp_path / "r.gz").write_bytes(b"")
    records = Records(tmp_path / "r.gz")
    records.append([{"problem": "a", "text": "ü\u2028x"}])
    assert Records(tmp_path / "r.gz").by_problem == {"a": [{"problem": "a", "text": "ü\u2028x"}]}


def test_large_records_span_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("recipe.flowrl.evaluate.records._CHUNK", 7)
    records = Records(tmp_path / "r.gz")
    for name in "abc":
        records.append([{"problem": name, "text": name * 50}])
    assert Records(tmp_path / "r.gz").by_problem == records.by_problem


@needs_real_data
def test_the_real_gsm8k(tmp_path: Path) -> None:
    """Its own answers are right in all forms, others wrong; a vote among them goes as it should."""
    assert main(["prepare", "gsm8k", f"source={REAL_DATA}", f"out={tmp_path}"]) == 0
    truths = {problem.prompt: problem.ground_truth for problem in load("gsm8k", ("gsm8k",), tmp_path)[0].problems}
    assert len(truths) == 1319
    forms = [r"\boxed{%s}", "Answer: $%s", r"So the answer is %s.0.", r"\boxed{%s1}"]
    options = Options("m", "gsm8k", ("gsm8k",), tmp_path, tmp_path / "out", n=4)
    found = run(options, Scripted(lambda problem, sample: forms[sample] % truths[problem]))[0]["benchmarks"]["gsm8k"]
    assert found["avg_at_n"]["value"] == 0.75 and found["maj_at_n"]["value"] == 1.0
    assert found["extraction_failed"] == 0.0


@needs_real_data
def test_the_real_codeforces_problems_are_those_of_the_contests() -> None:
    files = sorted(REAL_DATA.glob("**/test_codeforces.json*"))
    prompts = [code_task(row).prompt for _, row in read_rows(files[0])]
    assert {known_problems()[problem_fingerprint(prompt)] for prompt in prompts} == set(known_problems().values())
