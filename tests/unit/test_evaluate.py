"""Evaluations from the command to the report, with scripted responses in place of a model."""

import gzip
import io
import json
import os
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from recipe.flowrl.data.code_tasks import code_task
from recipe.flowrl.data.manifest import write_manifest
from recipe.flowrl.data.parquet import prompt_row, write_rows
from recipe.flowrl.data.sources import read_rows
from recipe.flowrl.errors import UserError
from recipe.flowrl.evaluate.__main__ import evaluate, main
from recipe.flowrl.evaluate.benchmarks import load
from recipe.flowrl.evaluate.contests import known_problems, problem_fingerprint
from recipe.flowrl.evaluate.generation import Completion, Request, Sampling, request_seed
from recipe.flowrl.evaluate.grading import grader_for
from recipe.flowrl.evaluate.model import model_directory, model_fingerprint, model_name
from recipe.flowrl.evaluate.options import Options, parse
from recipe.flowrl.evaluate.progress import Progress
from recipe.flowrl.evaluate.records import Records
from recipe.flowrl.evaluate.server import ServerEngine
from recipe.flowrl.evaluate.vllm_engine import VLLMEngine
from recipe.flowrl.files import alone_in
from recipe.flowrl.models.tiny_qwen2 import TinyQwen2Config, build
from recipe.flowrl.prepare_data import main as prepare_data
from recipe.flowrl.reporting.console import RunConsole
from recipe.flowrl.sandbox import bubblewrap
from recipe.flowrl.sandbox.choose import UNSAFE

REAL_DATA = os.environ.get("FLOWRL_REAL_DATA")
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
    monkeypatch.setattr("recipe.flowrl.rewards.math.compute_score", lambda *_, **__: broken)
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
    """Towers of powers: each takes the time limit once, against the right answer, and no more against each other."""
    compared = []
    monkeypatch.setattr("recipe.flowrl.rewards.math.same_answer", lambda *pair, **_: compared.append(pair))
    towers = [rf"\boxed{{9^{{9^{{9^{{9^{{{top}}}}}}}}}}}" for top in (9, 8)]
    found = run(replace(options, problems=1, n=2), Scripted(lambda problem, sample: towers[sample]))[0]
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


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ([], "model= is missing"),
        (["model=m"], "suite= is missing"),
        (["model=m", "suite=maths"], "suite=maths: must be 'math'"),
        (["model=m", "suite=math", "n=0"], "n=0: must be an integer >= 1"),
        (["model=m", "suite=math", "n=1.5"], "n=1.5"),
        (["model=m", "suite=math", "temperature=-1"], "temperature=-1"),
        (["model=m", "suite=math", "top_p=0"], r"top_p=0: must be a finite number in \(0, 1\]"),
        (["model=m", "suite=math", "max_token=5"], "did you mean 'max_tokens'"),
        (["model=m", "suite=math", "benchmarks=amc24"], "did you mean 'amc23'"),
        (["model=m", "suite=math", "server=host:8000"], "must be a URL"),
        (["model=m", "suite=math", "server=http://h/v1", "engine.dtype=float32"], "engine.dtype"),
        (["model=m", "suite=math", "grade_only=yes"], "grade_only=yes"),
        (["model=m", "suite=code", "sandbox=none"], "sandbox=none"),
        (["model=m", "suite=code", "contests=/nowhere"], "contests=/nowhere: no such directory"),
        (["model"], "expected KEY=VALUE"),
    ],
)
def test_wrong_arguments(arguments: list[str], named: str) -> None:
    with pytest.raises(UserError, match=named):
        parse(arguments)


def test_right_arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLOWRL_CACHE", str(tmp_path))
    given = parse("model=a/b suite=math benchmarks=amc23,math500 n=2 top_p=1 engine.tensor_parallel_size=4".split())
    assert given == Options(
        *("a/b", "math", ("amc23", "math500"), tmp_path / "math", Path("outputs/evaluation/b/math")),
        n=2,
        top_p=1.0,
        engine={"tensor_parallel_size": 4},
    )
    assert parse(["model=m", "suite=countdown"]).max_tokens == 32
    assert parse(["model=m", "suite=math"]).max_tokens == 8192


def test_missing_data_says_how_to_make_it(options: Options, data: Path) -> None:
    with pytest.raises(UserError, match=r"prepare_data math --out .*benchmarks=amc23,math500"):
        load("math", ("amc23", "math500", "minerva"), data)


def test_data_that_changed_since_it_was_prepared(data: Path) -> None:
    write_manifest(data, {"test_amc23.parquet": 4})
    write_rows(data / "test_amc23.parquet", [prompt_row("amc23", "math", "1+1", "2", 0, "test")])
    with pytest.raises(UserError, match="SHA-256 differs"):
        load("math", ("amc23",), data)


@pytest.mark.parametrize(
    ("rows", "named"),
    [
        ([{"prompt": "text"}], "not in verl's schema"),
        ([prompt_row("amc23", "math", "p", "1", 0, "test")] * 2, "same index"),
    ],
)
def test_data_in_another_form(tmp_path: Path, rows: list[dict], named: str) -> None:
    write_rows(tmp_path / "test_amc23.parquet", rows)
    with pytest.raises(UserError, match=named):
        load("math", ("amc23",), tmp_path)


def test_one_evaluation_at_a_time(tmp_path: Path) -> None:
    with alone_in(tmp_path), pytest.raises(UserError, match="another process"):
        with alone_in(tmp_path):
            pass
    with alone_in(tmp_path):
        pass


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("Qwen/Qwen2.5-7B", "Qwen2.5-7B"),
        ("/models/mine/", "mine"),
        ("outputs/countdown_cpu/flowrl/checkpoints/global_step_40", "countdown_cpu-flowrl-global_step_40"),
        ("outputs/countdown_cpu/flowrl/checkpoints/global_step_40/actor", "countdown_cpu-flowrl-global_step_40"),
        ("..", "model"),
    ],
)
def test_names_of_models(model: str, name: str) -> None:
    assert model_name(model) == name


def test_a_model_that_changed_is_another_model(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    before = model_fingerprint(str(tmp_path))
    (tmp_path / "config.json").write_text("{ }")
    assert before != model_fingerprint(str(tmp_path))
    assert model_fingerprint("org/name") is None


@pytest.mark.parametrize("model", ["nowhere", "/nowhere/at/all", "a/b/c"])
def test_a_model_that_is_not_there(model: str) -> None:
    with pytest.raises(UserError, match="is not there"), model_directory(model):
        pass


def test_a_directory_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no config.json"), model_directory(str(tmp_path)):
        pass
    (tmp_path / "config.json").write_text("{}")
    with model_directory(str(tmp_path)) as directory:
        assert directory == str(tmp_path)


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("tiny")
    build(directory, TinyQwen2Config(hidden_size=64, intermediate_size=64, layers=1, heads=2))
    return directory


def test_a_response_longer_than_the_model_has_positions(tiny_model: Path) -> None:
    with pytest.raises(UserError, match=r"has \d+ tokens and the model 256 positions: at most max_tokens=2\d\d"):
        VLLMEngine(str(tiny_model), ["1 2 -> 3"], 8192, {})


def test_a_model_without_a_chat_template(tiny_model: Path, tmp_path: Path) -> None:
    bare = shutil.copytree(tiny_model, tmp_path / "bare")
    (bare / "chat_template.jinja").unlink()
    with pytest.raises(UserError, match="no chat template"):
        VLLMEngine(str(bare), ["1 2 -> 3"], 8, {})


class _Server(BaseHTTPRequestHandler):
    """OpenAI's interface as far as it is used; says what it was asked."""

    owner = "vllm"
    reason = "stop"

    def do_GET(self) -> None:
        self._reply({"object": "list", "data": [{"id": "m", "object": "model", "created": 0, "owned_by": self.owner}]})

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        message = {"role": "assistant", "content": json.dumps(asked)}
        choice = {"index": 0, "finish_reason": self.reason, "message": message}
        usage = {"prompt_tokens": 1, "completion_tokens": 7, "total_tokens": 8}
        self._reply(
            {"id": "1", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice], "usage": usage}
        )

    def _reply(self, content: dict) -> None:
        body = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Nothing to say."""


@pytest.fixture
def server() -> Iterator[tuple[str, type[_Server]]]:
    handler = type("Handler", (_Server,), {})
    http = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=http.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{http.server_port}/v1", handler
    http.shutdown()


def ask(url: str, options: Options) -> list[tuple[Request, Completion]]:
    problems = load("math", ("amc23",), options.data)[0].problems
    requests = [Request(problem, sample, 100 + sample) for problem in problems for sample in range(2)]
    return list(ServerEngine(url, "m", 4).generate(requests, Sampling(0.6, 0.95, 50)))


def test_what_a_server_is_asked(server: tuple[str, type[_Server]], options: Options) -> None:
    """Each sample with its seed; and a model's own sampling defaults are switched off."""
    replies = ask(server[0], options)
    assert len(replies) == 8
    for request, completion in replies:
        assert completion.tokens == 7 and completion.finish_reason == "stop"
        assert json.loads(completion.text) == {
            "model": "m",
            "messages": [{"role": "user", "content": request.problem.prompt}],
            "temperature": 0.6,
            "top_p": 0.95,
            "max_tokens": 50,
            "seed": request.seed,
            "top_k": -1,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
        }


def test_fields_that_only_some_servers_know(server: tuple[str, type[_Server]], options: Options) -> None:
    server[1].owner = "somebody"
    assert "top_k" not in json.loads(ask(server[0], options)[0][1].text)


def test_a_response_that_was_filtered_is_an_error(server: tuple[str, type[_Server]], options: Options) -> None:
    server[1].reason = "content_filter"
    with pytest.raises(UserError, match="content_filter"):
        ask(server[0], options)


def test_a_server_without_the_model(server: tuple[str, type[_Server]]) -> None:
    with pytest.raises(UserError, match="model=other: not on .* which has m"):
        ServerEngine(server[0], "other", 1)


def test_no_server() -> None:
    with pytest.raises(UserError, match="APIConnectionError"):
        ServerEngine("http://127.0.0.1:9/v1", "m", 1)


def test_the_command(server: tuple[str, type[_Server]], data: Path, tmp_path: Path, capfd: Any) -> None:
    arguments = ["model=m", "suite=math", "benchmarks=amc23", f"data={data}", f"out={tmp_path / 'out'}", "n=2"]
    assert main([*arguments, f"server={server[0]}"]) == 0
    assert "amc23" in capfd.readouterr().out
    assert main([*arguments, f"server={server[0]}", "n=3"]) == 2
    assert "another protocol (n: 2 there, 3 now)" in capfd.readouterr().err


@pytest.mark.skipif(REAL_DATA is None, reason="FLOWRL_REAL_DATA names no directory of the real data sets")
def test_the_real_gsm8k(tmp_path: Path) -> None:
    """Its own answers are right in all forms, others wrong; a vote among them goes as it should."""
    assert prepare_data(["gsm8k", "--source", REAL_DATA, "--out", str(tmp_path)]) == 0
    truths = {problem.prompt: problem.ground_truth for problem in load("gsm8k", ("gsm8k",), tmp_path)[0].problems}
    assert len(truths) == 1319
    forms = [r"\boxed{%s}", "Answer: $%s", r"So the answer is %s.0.", r"\boxed{%s1}"]
    options = Options("m", "gsm8k", ("gsm8k",), tmp_path, tmp_path / "out", n=4)
    found = run(options, Scripted(lambda problem, sample: forms[sample] % truths[problem]))[0]["benchmarks"]["gsm8k"]
    assert found["avg_at_n"]["value"] == 0.75 and found["maj_at_n"]["value"] == 1.0
    assert found["extraction_failed"] == 0.0


@pytest.mark.skipif(REAL_DATA is None, reason="FLOWRL_REAL_DATA names no directory of the real data sets")
def test_the_real_codeforces_problems_are_those_of_the_contests() -> None:
    files = sorted(Path(REAL_DATA).glob("**/test_codeforces.json*"))
    prompts = [code_task(row).prompt for _, row in read_rows(files[0])]
    assert {known_problems()[problem_fingerprint(prompt)] for prompt in prompts} == set(known_problems().values())
