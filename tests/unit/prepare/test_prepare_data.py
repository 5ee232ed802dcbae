"""Data preparation on small files in the published forms: what is kept, what is dropped and said, and the manifest."""

import gzip
import json
from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from real_data import REAL_DATA, needs_real_data

from recipe.flowrl.__main__ import main
from recipe.flowrl.common.errors import UserError
from recipe.flowrl.common.project import PROJECT
from recipe.flowrl.sandbox import bubblewrap
from recipe.flowrl.tasks.code.cases import CallTests, parse_tests
from recipe.flowrl.tasks.code.data import code_task, humaneval_task
from recipe.flowrl.tasks.code.reward import compute_score as score_code
from recipe.flowrl.tasks.manifest import check_file
from recipe.flowrl.tasks.math.data import math_task
from recipe.flowrl.tasks.math.reward import compute_score as score_math
from recipe.flowrl.tasks.public import sources
from recipe.flowrl.tasks.public.overlap import TestIndex, normalized
from recipe.flowrl.tasks.task import Malformed

DATA = PROJECT / "tests" / "data"
"""Directory of the sources, as ``--source`` takes it."""
LONG = "A frog starts at lily pad number one and jumps to the right by one or two pads with equal probability each time"


def write_lines(path: Path, rows: Iterable[object]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())


def verl_row(problem: str, answer: str | None) -> dict:
    return {"prompt": [{"role": "user", "content": problem}], "reward_model": {"ground_truth": answer}}


@pytest.fixture
def math_source(tmp_path: Path) -> Path:
    root = tmp_path / "source"
    train = [
        verl_row("What is 1+1?", "2"),
        verl_row("What is 1+1?", "2"),
        verl_row("What is 1-1?", "0"),
        verl_row("What is 2+2?", "4"),
        verl_row("What is 2+2?", "5"),
        verl_row("", "5"),
        verl_row("No answer", None),
        verl_row(LONG + ". How often?", "7"),
        verl_row("Compute $ 3+ 4 $!", "7"),
    ]
    (root / "dapo_math_17k").mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(train), root / "dapo_math_17k" / "train.parquet")
    write_lines(root / "aime24" / "test.jsonl", [{"problem": f"First, {LONG}.", "answer": "033"}, "not json"])
    write_lines(root / "aime25" / "test.jsonl", [{"problem": "Compute $3 + 4$", "answer": r"336^\circ"}])
    write_lines(root / "amc23" / "test.jsonl", [{"question": "Q", "answer": 27.0}])
    write_lines(root / "math500" / "test.jsonl.gz", [{"problem": "P", "answer": r"\frac{1}{2}", "solution": "s"}])
    minerva = [{"problem": "M", "solution": r"so \boxed{3e-10}"}, {"problem": "N", "answer": ["a\n", "a", "b"]}]
    write_lines(root / "minerva_math" / "test.jsonl.gz", minerva)
    olympiad = [
        {"question": "O", "context": "Given.", "final_answer": ["$69$,$84$"], "error": None},
        {"question": "T", "final_answer": ["4.2"], "error": "1e-1"},
    ]
    write_lines(root / "olympiadbench" / "test.jsonl.gz", olympiad)
    return root


def prepared(source: Path, out: Path, domain: str = "math", *options: str) -> dict:
    assert main(["prepare", domain, f"source={source}", f"out={out}", *options]) == 0
    return json.loads((out / "report.json").read_text())


def rows(path: Path) -> list[dict]:
    return pq.read_table(path).to_pylist()


def test_math_is_prepared_in_verls_schema(math_source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    prepared(math_source, out)
    train = rows(out / "train.parquet")
    assert [row["reward_model"]["ground_truth"] for row in train] == ["2", "0"]
    first = train[0]
    assert first["data_source"] == "math_dapo" and first["ability"] == "math"
    assert first["prompt"][0]["role"] == "user" and "What is 1+1?" in first["prompt"][0]["content"]
    assert 'on its own line after "Answer:"' in first["prompt"][0]["content"]
    assert first["extra_info"] == {"index": 0, "split": "train", "tolerance": 0.0}
    assert rows(out / "test_aime2024.parquet")[0]["reward_model"]["ground_truth"] == "33"
    assert rows(out / "test_amc23.parquet")[0]["reward_model"]["ground_truth"] == "27"
    assert {pq.read_schema(path) for path in out.glob("*.parquet")} == {pq.read_schema(out / "train.parquet")}


def test_several_answers_and_tolerances_are_kept_and_graded(math_source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    prepared(math_source, out)

    def graded(name: str, index: int, answer: str) -> float:
        row = rows(out / f"test_{name}.parquet")[index]
        truth = row["reward_model"]["ground_truth"]
        return score_math(row["data_source"], f"Answer: {answer}", truth, row["extra_info"])["acc"]

    assert graded("olympiadbench", 0, "84, 69") == 1.0 and graded("olympiadbench", 0, "69") == 0.0
    assert graded("olympiadbench", 1, "4.25") == 1.0 and graded("olympiadbench", 1, "4.4") == 0.0
    assert graded("minerva", 1, "b") == 1.0 and graded("minerva", 1, "c") == 0.0
    assert graded("minerva", 0, r"3 \times 10^{-10}") == 1.0


def test_what_is_dropped_is_counted_and_listed(math_source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    report = prepared(math_source, out)
    assert report["read"]["dapo_math_17k"] == 9 and report["read"]["aime24"] == 2
    assert report["dropped"]["dapo_math_17k"] == {
        "malformed: no problem text": 1,
        "malformed: no answer": 1,
        "repeated": 1,
        "repeated with another answer": 2,
        "overlap with aime2024: 13-gram": 1,
        "overlap with aime2025: exact": 1,
    }
    assert report["dropped"]["aime24"] == {"malformed: not a JSON object": 1}
    assert report["overlap"] == {"aime2024: 13-gram": 1, "aime2025: exact": 1}
    listed = [json.loads(line) for line in (out / "dropped.jsonl").read_text().splitlines()]
    assert len(listed) == 8 and listed[0]["row"] == "train.parquet:5"


def test_overlap_can_be_kept(math_source: Path, tmp_path: Path) -> None:
    report = prepared(math_source, tmp_path / "out", "math", "keep_overlap=true")
    assert sum(report["overlap"].values()) == 2 and report["rows"]["train.parquet"] == 4


def test_the_manifest_guards_the_files(math_source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    prepared(math_source, out)
    recorded = json.loads((out / "manifest.json").read_text())["files"]
    assert recorded["train.parquet"]["rows"] == 2 and len(recorded) == 7
    check_file(out / "train.parquet")
    pq.write_table(pq.read_table(out / "train.parquet").slice(0, 1), out / "train.parquet")
    with pytest.raises(UserError, match="SHA-256"):
        check_file(out / "train.parquet")
    (out / "manifest.json").write_text("{")
    with pytest.raises(UserError, match="can't be read"):
        check_file(out / "train.parquet")
    (out / "manifest.json").unlink()
    check_file(out / "train.parquet")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["source=nowhere"], "source=nowhere: must be a directory that exists"),
        (["skip=aime99", "source=."], "no such source"),
        (["skip=dapo_math_17k", "source=."], "no training data"),
    ],
)
def test_bad_input_gets_one_line(options: list[str], message: str, tmp_path: Path, capsys) -> None:
    assert main(["prepare", "math", *options, f"out={tmp_path / 'out'}"]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_missing_and_damaged_files_are_named(math_source: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "out"
    (math_source / "amc23" / "test.jsonl").unlink()
    assert main(["prepare", "math", f"source={math_source}", f"out={out}"]) == 2
    assert "skip=amc23" in capsys.readouterr().err
    assert prepared(math_source, out, "math", "skip=amc23")["skipped"] == ["amc23"]
    (math_source / "dapo_math_17k" / "train.parquet").write_bytes(b"PAR1 cut short")
    assert main(["prepare", "math", f"source={math_source}", f"out={out}", "skip=amc23"]) == 2
    assert "train.parquet can't be read" in capsys.readouterr().err
    write_lines(math_source / "aime24" / "test.jsonl", [{"other": 1}])
    assert main(["prepare", "math", f"source={math_source}", f"out={out}", "skip=amc23"]) == 2


def test_nothing_is_fetched_when_a_source_is_given(math_source: Path, tmp_path: Path, monkeypatch) -> None:
    def fetch(*arguments: object) -> None:
        raise AssertionError("a download")

    monkeypatch.setattr(sources, "download", fetch)
    prepared(math_source, tmp_path / "out")


def test_a_download_that_fails_says_what_to_do(tmp_path: Path) -> None:
    # Tests run with HF_HUB_OFFLINE=1.
    with pytest.raises(UserError, match="DAPO-Math-17k can't be downloaded.*source="):
        sources.download(sources.MATH[0], tmp_path)


def test_the_authors_collection_is_read(tmp_path: Path) -> None:
    folder = tmp_path / "source" / "math_data" / "math_data"
    folder.mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist([verl_row("What is 1+1?", "2")]), folder / "dapo-math-17k.parquet")
    pq.write_table(pa.Table.from_pylist([verl_row("What is 5?", "5")]), folder / "vaildation.parquet")
    report = prepared(tmp_path / "source", tmp_path / "out", "math", "collection=authors")
    assert report["rows"] == {"train.parquet": 1, "test_validation.parquet": 1}


def test_code_is_prepared(tmp_path: Path) -> None:
    root, out = tmp_path / "source", tmp_path / "out"
    case = {"input": "1 2", "output": "3"}
    prime = [
        {"problem": "Add.", "tests": json.dumps([{"type": "stdin_stdout", **case}])},
        {"problem": "Bad.", "tests": "[]"},
        {"problem": "", "tests": json.dumps([case])},
        {"problem": LONG, "tests": json.dumps([case])},
    ]
    for name, content in (
        ("primeintellect", prime),
        ("taco", [{"problem": "Taco.", "tests": json.dumps({"inputs": ["1"], "outputs": ["2"]})}]),
    ):
        (root / name / name).mkdir(parents=True)
        pq.write_table(pa.Table.from_pylist(content), root / name / name / "train-00000-of-00001.parquet")
    (root / "codeforces").mkdir()
    (root / "codeforces" / "test_codeforces.json").write_text(json.dumps([{"problem": LONG, "tests": [case]}]))
    report = prepared(root, out, "code", "skip=lcb_train,livecodebench,humanevalplus")
    assert report["rows"] == {"train.parquet": 2, "test_codeforces.parquet": 1}
    assert report["dropped"]["primeintellect"] == {
        "malformed: there is no test": 1,
        "malformed: no problem text": 1,
        "overlap with codeforces: exact": 1,
    }
    train = rows(out / "train.parquet")
    assert [row["data_source"] for row in train] == ["primeintellect", "taco"]
    assert "standard input" in train[0]["prompt"][0]["content"]
    parse_tests(train[1]["reward_model"]["ground_truth"])


def test_a_function_s_name_is_found_where_the_row_has_it() -> None:
    starter = "class Solution:\n    def count(self, details: List[str]) -> int:\n        "
    row = {
        "problem": "P",
        "starter_code": starter,
        "tests": [{"input": "[1]", "output": "1", "testtype": "functional"}],
    }
    task = code_task(row)
    assert parse_tests(task.ground_truth).function == "Solution.count" and "def count" in task.prompt
    named = code_task({**row, "starter_code": "", "metadata": '{"func_name": "total"}'})
    assert parse_tests(named.ground_truth).function == "Solution.total"
    with pytest.raises(Malformed, match="function's name"):
        code_task({**row, "starter_code": ""})


@pytest.mark.skipif(bubblewrap.problem() is not None, reason=f"no sandbox: {bubblewrap.problem()}")
def test_humaneval_tests_are_made_from_its_solutions() -> None:
    lines = (DATA / "humanevalplus_mini.jsonl").read_text().splitlines()
    row = json.loads(lines[0])
    task = humaneval_task(row, bubblewrap.BubblewrapRunner())
    tests = parse_tests(task.ground_truth)
    assert isinstance(tests, CallTests) and len(tests) == len(row["base_input"]) + len(row["plus_input"])
    right = f"```python\n{row['prompt']}{row['canonical_solution']}\n```"
    assert score_code("humanevalplus", right, task.ground_truth, {"split": "test"}, concurrency=1)["acc"] == 1.0
    with pytest.raises(Malformed, match="failed"):
        humaneval_task({**row, "canonical_solution": "    raise ValueError"}, bubblewrap.BubblewrapRunner())


def test_set_phrases_are_no_overlap() -> None:
    phrase = "where m and n are relatively prime positive integers find the sum of m and n"
    tests = {"a": [f"number {index} {phrase}" for index in range(3)], "b": [LONG]}
    index = TestIndex(tests)
    assert index.find(f"something else {phrase}") is None
    assert index.find("Number 1 " + phrase) == ("exact", "a")
    assert index.find(LONG.upper() + " and then") == ("13-gram", "b")
    assert index.find(" ".join(LONG.split()[:12])) is None
    assert TestIndex(tests, [f"{number} {LONG}" for number in range(5)]).find(f"x {LONG}") is None
    assert normalized("Compute $3 + 4$!") == "compute 3 4"


@pytest.mark.parametrize(
    ("row", "truth"),
    [
        ({"problem": "p", "answer": "033"}, "33"),
        ({"problem": "p", "answer": -4.0}, "-4"),
        ({"problem": "p", "answer": "$k=1$"}, "k=1"),
        ({"problem": "p", "answer": "0"}, "0"),
        ({"problem": "p", "answer": "0.50"}, "0.50"),
        ({"question": "p", "answer": "He has 2 * 617 = <<2*617=1234>>1234.\n#### 1,234"}, "1234"),
    ],
)
def test_answers_are_written_one_way(row: dict, truth: str) -> None:
    assert math_task(row).ground_truth == truth


@pytest.mark.parametrize("collection", ["original", "authors"])
def test_gsm8k(tmp_path: Path, collection: str) -> None:
    for split, question in (("train", "What is 1+1?"), ("test", "What is 2+2?")):
        rows = [{"question": question, "answer": "Easy.\n#### 4"}]
        write_lines(tmp_path / "source" / "gsm8k" / f"{split}.jsonl.gz", rows)
    arguments = ["prepare", "gsm8k", f"source={tmp_path / 'source'}", f"out={tmp_path}", f"collection={collection}"]
    assert main(arguments) == 0
    (row,) = pq.read_table(tmp_path / "test_gsm8k.parquet").to_pylist()
    assert row["data_source"] == "gsm8k" and row["ability"] == "math"
    assert row["reward_model"]["ground_truth"] == "4"
    assert "What is 2+2?" in row["prompt"][0]["content"] and "Answer:" in row["prompt"][0]["content"]


@needs_real_data
def test_the_real_data_sets(tmp_path: Path) -> None:
    report = prepared(REAL_DATA, tmp_path / "out")
    assert report["read"]["dapo_math_17k"] == 17917
    assert 16000 < report["rows"]["train.parquet"] < 17290, "17,290 are distinct; those in test sets go"
    tests = {name: count for name, count in report["rows"].items() if name != "train.parquet"}
    assert sorted(tests.values()) == [30, 30, 40, 272, 500, 675]
