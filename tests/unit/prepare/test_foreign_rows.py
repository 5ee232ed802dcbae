"""Rows that other people wrote: each is read, or dropped with its reason counted, whatever the bytes are."""

import functools
import gzip
import json
from collections.abc import Callable
from contextlib import suppress
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from recipe.flowrl.__main__ import main
from recipe.flowrl.common.errors import UserError
from recipe.flowrl.tasks.code.data import code_task, humaneval_task
from recipe.flowrl.tasks.math.data import math_task
from recipe.flowrl.tasks.public import sources
from recipe.flowrl.tasks.rows import read_rows
from recipe.flowrl.tasks.task import Malformed, Task

BOM = b"\xef\xbb\xbf"
packed = functools.partial(gzip.compress, mtime=0)  # in the names of tests, which pytest's workers compare


def gsm8k(root: Path, train: bytes, test: bytes) -> Path:
    (root / "gsm8k").mkdir(parents=True)
    (root / "gsm8k" / "train.jsonl").write_bytes(train)
    (root / "gsm8k" / "test.jsonl").write_bytes(test)
    return root


def line(question: str, answer: Any, **more: Any) -> bytes:
    return json.dumps({"question": question, "answer": answer, **more}).encode() + b"\n"


def prepare(source: Path, out: Path) -> dict[str, Any]:
    assert main(["prepare", "gsm8k", f"source={source}", f"out={out}"]) == 0
    return json.loads((out / "report.json").read_text())


def read(path: Path, content: bytes) -> list[Any]:
    path.write_bytes(content)
    return [row for _, row in read_rows(path)]


TWO = [{"a": 1}, {"b": "ü"}]
LINES = [json.dumps(row, ensure_ascii=False).encode() for row in TWO]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("rows.jsonl", BOM + b"\n".join(LINES)),
        ("rows.jsonl", b"\n".join(BOM + row for row in LINES)),  # files with marks, one after the other
        ("rows.jsonl", b"\r\n".join(LINES) + b"\r\n"),
        ("rows.jsonl", b"\r".join(LINES)),
        ("rows.jsonl", b"\n\n \n" + b"\n\n".join(LINES) + b"\n\n"),
        ("rows.jsonl", packed(b"\n".join(LINES))),  # a browser that keeps the name
        ("rows.jsonl.gz", packed(BOM + b"\n".join(LINES))),
        ("rows.jsonl.gz", b"\n".join(LINES)),
        ("rows.json", b"\n".join(LINES)),
        ("rows.json", BOM + b"[" + b",\n".join(LINES) + b"]"),
        ("rows.json", b"\n [\r\n" + b",\r\n".join(LINES) + b"]"),
        ("rows.json.gz", packed(b"[" + b",".join(LINES) + b"]")),
    ],
)
def test_files_that_are_read(name: str, content: bytes, tmp_path: Path) -> None:
    assert read(tmp_path / name, content) == TWO


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c"])
def test_no_character_within_a_text_ends_a_row(separator: str, tmp_path: Path) -> None:
    row = {"a": f"one{separator}row"}
    assert read(tmp_path / "rows.jsonl", json.dumps(row, ensure_ascii=False).encode()) == [row]


@pytest.mark.parametrize(
    "bad", [b'{"a": 1},', b'{"a": 1', b"[1]", b"7", b"null", b'"text"', b"{'a': 1}", b"[" * 100_000, b"\\"]
)
def test_lines_that_are_no_rows_are_given_with_their_reason(bad: bytes, tmp_path: Path) -> None:
    first, dropped, last = read(tmp_path / "rows.jsonl", b"\n".join([LINES[0], bad, LINES[1]]))
    assert [first, last] == TWO and isinstance(dropped, Malformed) and str(dropped) == "not a JSON object"


@pytest.mark.parametrize(
    ("name", "content", "parts"),
    [
        ("rows.jsonl", "".join('{"a": "ü"}\n' * 2).encode("utf-16"), ["utf-16"]),
        ("rows.jsonl", '{"a": "ü"}\n'.encode("utf-16-le"), ["utf-16-le"]),
        ("rows.json", '[{"a": "ü"}]'.encode("utf-32"), ["utf-32"]),
        ("rows.jsonl", b'{"a": 1}\n{"a": "\xfc"}\n', ["after row 0", "utf-8"]),
        ("rows.jsonl.gz", packed(b"\n".join(LINES))[:-9], ["can't be read"]),
        ("rows.jsonl.gz", packed(b'{"a": 1}')[:12] + b"\xff" * 20, ["can't be read"]),
        ("rows.json", b'[{"a": 1},', ["JSONDecodeError"]),
        ("rows.json", b"[" * 100_000, ["RecursionError"]),
        ("rows.parquet", b"PAR1 cut", ["can't be read"]),
    ],
)
def test_files_that_are_refused_in_one_line(name: str, content: bytes, parts: list[str], tmp_path: Path) -> None:
    with pytest.raises(UserError) as refused:
        read(tmp_path / name, content)
    message = str(refused.value)
    assert str(tmp_path / name) in message and "\n" not in message and all(part in message for part in parts), message


def test_single_precision_is_read_as_the_decimal_that_it_stands_for(tmp_path: Path) -> None:
    pq.write_table(pa.table({"answer": pa.array([0.1, None, 27.0], pa.float32())}), tmp_path / "rows.parquet")
    assert [row["answer"] for _, row in read_rows(tmp_path / "rows.parquet")] == [0.1, None, 27.0]


ASKED = {"problem": "What is it?"}


@pytest.mark.parametrize(
    ("answer", "truth"),
    [
        (5, "5"),
        (27.0, "27"),
        (-0.0, "0"),
        (1e3, "1000"),
        (1e23, "100000000000000000000000"),
        (1e-7, "0.0000001"),
        (Decimal("0.50"), "0.50"),
        (" 12 ", "12"),
        ([1, 2.5], '["1", "2.5"]'),
        ([None, "7", float("nan")], "7"),
        ('["7", "8"]', '["7", "8"]'),
        ("['7']", "7"),
        ("[1, 2]", "[1, 2]"),  # an interval
        (r"\{1, 2\}", r"\{1, 2\}"),
        ("{1, 2}", "{1, 2}"),
        ("none of these", "none of these"),
    ],
)
def test_references_that_are_read(answer: Any, truth: str) -> None:
    assert math_task({**ASKED, "answer": answer}).ground_truth == truth
    assert math_task({**ASKED, "reward_model": {"ground_truth": answer}}).ground_truth == truth


def test_an_integer_of_any_length_stays_exact(tmp_path: Path) -> None:
    (row,) = read(tmp_path / "rows.jsonl", b'{"problem": "p", "answer": ' + b"7" * 5000 + b"}")
    assert math_task(row).ground_truth == "7" * 5000


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (None, "no answer"),
        (float("nan"), "no answer"),
        ("NaN", "no answer"),
        (" null ", "no answer"),
        ("None", "no answer"),
        ("", "no answer"),
        ([], "no answer"),
        ([None], "no answer"),
        ("$ $", "no answer"),
        ("so it goes\n####", "no answer"),
        (float("inf"), "an infinite number"),
        (-float("inf"), "an infinite number"),
        (True, "true or false, not text or a number"),
        ({"target": ["2"]}, "an object, not text or a number"),
        ('{"target": ["2"]}', "an object, not text or a number"),
        ("{'target': ['2']}", "an object, not text or a number"),
        ({"numbers": [1, 2], "target": 3}, "an object"),
        ([["2"]], "a list, not text or a number"),
        ([{"value": "2"}], "an object, not text or a number"),
        (b"2", "a value of type bytes"),
        ("\ud83d", "lone surrogate"),
    ],
)
def test_references_that_are_none(answer: Any, reason: str) -> None:
    with pytest.raises(Malformed, match=reason):
        math_task({**ASKED, "answer": answer})
    with pytest.raises(Malformed, match=reason):
        math_task({**ASKED, "reward_model": {"ground_truth": answer}})


def test_a_field_without_an_answer_leaves_it_to_the_next() -> None:
    assert math_task({**ASKED, "final_answer": float("nan"), "answer": "4"}).ground_truth == "4"
    assert math_task({**ASKED, "answer": None, "solution": r"so \boxed{4}"}).ground_truth == "4"


USER = {"role": "user", "content": "What is 1+1?"}


@pytest.mark.parametrize(
    "chat",
    [
        [USER],
        [{"role": "system", "content": "Think."}, USER, {"role": "assistant", "content": "2"}],
        [{"from": "human", "value": "What is 1+1?"}, {"from": "gpt", "value": "2"}],
        [{"from": "system", "value": "s"}, {"from": "human", "value": "What is 1+1?"}],
        [{"role": "user", "content": [{"type": "text", "text": "What is"}, {"type": "text", "text": " 1+1?"}]}],
        [{"role": "user", "content": ["What is", " ", "1+1?"]}],
        [USER, {"role": "tool", "content": "2", "tool_call_id": "x"}],
        [{"role": None, "from": "user", "content": None, "value": "What is 1+1?"}],  # a struct of both forms
        "What is 1+1?",
    ],
)
@pytest.mark.parametrize("field", ["prompt", "messages", "conversations"])
def test_chats_that_are_read(chat: Any, field: str) -> None:
    assert math_task({field: chat, "answer": "2"}).text == "What is 1+1?"
    tests = json.dumps({"inputs": ["1"], "outputs": ["2"]})
    assert code_task({field: chat, "reward_model": {"ground_truth": tests}}).text == "What is 1+1?"


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({}, "no problem text"),
        ({"prompt": []}, "no problem text"),
        ({"prompt": [{"role": "assistant", "content": "2"}]}, "no problem text"),
        ({"prompt": [{"content": "who says it?"}]}, "no problem text"),
        ({"prompt": [USER, {"role": "assistant", "content": "2"}, USER]}, "prompt: several turns of the user"),
        ({"prompt": ["What is 1+1?"]}, "prompt: a list, not a chat"),
        ({"prompt": [{"role": "user", "content": 5}]}, "prompt: a number, not text"),
        (
            {"prompt": [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}]},
            "a part that isn't text",
        ),
        ({"messages": {"role": "user"}}, "messages: an object, not a chat"),
        ({"problem": 5}, "problem: a number, not text"),
        ({"problem": ["p"]}, "problem: a list, not text"),
        ({"problem": float("nan")}, "no problem text"),
        ({"problem": "\udc80"}, "lone surrogate"),
        ({"problem": "p", "reward_model": "5"}, "reward_model: .*str, not an object"),
        ({"problem": "p", "error": "1e-1,1e-2"}, "error: a tolerance"),
        ({"problem": "p", "error": -1}, "error: a tolerance"),
        ({"problem": "p", "error": float("inf")}, "error: a tolerance"),
        ({"problem": "p", "error": True}, "error: a tolerance"),
    ],
)
def test_rows_that_are_none(row: dict[str, Any], reason: str) -> None:
    with pytest.raises(Malformed, match=reason):
        math_task({"answer": "2", **row})


@pytest.mark.parametrize(
    "tests",
    [None, "", "[", "null", "5", [], [None], [5], {}, {"inputs": 5}, {"inputs": ["1"], "outputs": []}]
    + [{"inputs": ["\ud83d"], "outputs": ["x"]}, [{"testtype": "functional", "metadata": "{"}, 5], b"[]"],
)
def test_tests_that_are_none(tests: Any) -> None:
    with pytest.raises(Malformed):
        code_task({"problem": "p", "tests": tests})


def test_a_mark_costs_no_row_and_the_report_counts_both_files(tmp_path: Path) -> None:
    content = [BOM + line("a", "#### 1") + line("b", "#### 2"), BOM + line("c", "#### 3") + line("d", "#### 4")]
    report = prepare(gsm8k(tmp_path / "source", *content), tmp_path / "out")
    assert report["read"] == {"gsm8k": 4} and report["dropped"] == {"gsm8k": {}}
    assert report["rows"] == {"train.parquet": 2, "test_gsm8k.parquet": 2}


def test_bad_rows_are_dropped_counted_shown_and_nothing_is_half_written(tmp_path: Path, capsys) -> None:
    bad = [line("x", float("nan")), line("y \ud83d", "4"), b"{cut", line("z", {"target": ["2"]}), line("", "4")]
    source = gsm8k(tmp_path / "source", line("a", "1") + b"".join(bad[:2]), line("b", "2") + b"\n".join(bad[2:]))
    report = prepare(source, tmp_path / "out")
    reasons = {
        "malformed: no answer": 1,
        "malformed: problem with a lone surrogate, which is no Unicode": 1,
        "malformed: not a JSON object": 1,
        "malformed: answer: an object, not text or a number": 1,
        "malformed: no problem text": 1,
    }
    assert report["dropped"] == {"gsm8k": reasons} and report["read"] == {"gsm8k": 7}
    shown = capsys.readouterr().out
    assert all(reason in shown for reason in reasons)
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["dropped"] == report["dropped"] and manifest["read"] == report["read"]
    listed = [json.loads(text) for text in (tmp_path / "out" / "dropped.jsonl").read_bytes().split(b"\n") if text]
    assert {row["row"] for row in listed} == {"train.jsonl:1", "train.jsonl:2", *(f"test.jsonl:{i}" for i in (1, 2, 3))}


def test_a_set_stays_whole_when_the_next_one_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, out = gsm8k(tmp_path / "source", line("a", "1"), line("b", "2")), tmp_path / "out"
    prepare(source, out)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    (source / "gsm8k" / "train.jsonl").write_bytes(line("another", "1"))

    def no_space(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("recipe.flowrl.prepare.public_sets.write_manifest", no_space)
    assert main(["prepare", "gsm8k", f"source={source}", f"out={out}"]) == 1
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_repeated_test_problems_count_once(tmp_path: Path) -> None:
    thirty = [line(f"problem {index}", str(index)) for index in range(30)]
    contradiction = line("problem  7 ", "8") + line("new", "1") + line("new", "2")
    source = gsm8k(tmp_path / "source", line("a", "1"), b"".join(thirty * 32) + contradiction)
    report = prepare(source, tmp_path / "out")
    assert report["rows"]["test_gsm8k.parquet"] == 29
    assert report["dropped"]["gsm8k"] == {"repeated": 29 * 31, "repeated with another answer": 33 + 2}


def test_a_test_set_of_contradictions_is_refused(tmp_path: Path, capsys) -> None:
    source = gsm8k(tmp_path / "source", line("a", "1"), line("b", "1") + line("b", "2"))
    assert main(["prepare", "gsm8k", f"source={source}", f"out={tmp_path / 'out'}"]) == 2
    assert "gsm8k: no problem is left" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_a_source_without_a_row_says_why(tmp_path: Path, capsys) -> None:
    source = gsm8k(tmp_path / "source", line("a", float("nan")) * 3, line("b", "1"))
    assert main(["prepare", "gsm8k", f"source={source}", f"out={tmp_path / 'out'}"]) == 2
    error = capsys.readouterr().err
    assert "not one row of train.jsonl can be used (3 malformed: no answer)" in error and error.count("\n") == 1


def test_what_a_download_leaves_beside_the_files_is_no_data(tmp_path: Path) -> None:
    folder = tmp_path / "aime24"
    (folder / ".cache" / "huggingface").mkdir(parents=True)
    (folder / "test.jsonl").write_text("{}")
    (folder / ".cache" / "huggingface" / "test.jsonl.metadata").write_text("x")
    (folder / "._test.jsonl").write_text("x")
    assert sources.locate(sources.MATH[1], tmp_path) == [folder / "test.jsonl"]


# ---- whatever the bytes are ----------------------------------------------------------------------------------------

TEXTS = st.text(max_size=8) | st.text("\ud83d\ude00\u2028{}", max_size=8)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | TEXTS
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3), max_leaves=4
)
FIELDS = ["problem", "question", "prompt", "messages", "answer", "final_answer", "solution", "reward_model", "error"]
FIELDS += ["context", "tests", "starter_code", "metadata", "entry_point", "canonical_solution", "base_input", "atol"]
NESTED = st.fixed_dictionaries({}, optional={"ground_truth": VALUES, "role": VALUES, "content": VALUES, "from": VALUES})
ROWS = st.dictionaries(st.sampled_from(FIELDS), VALUES | NESTED | st.lists(NESTED, max_size=2))


@pytest.mark.parametrize("reader", [math_task, code_task, lambda row: humaneval_task(row, None)])
@given(row=ROWS)
@settings(max_examples=80, deadline=None)
def test_any_row_is_a_task_or_malformed(reader: Callable[[dict], Task], row: dict[str, Any]) -> None:
    try:
        task = reader(row)
    except Malformed as reason:
        assert str(reason)
    else:
        assert task.text.strip() and task.ground_truth and (task.prompt + task.ground_truth).encode()


@given(content=st.binary(max_size=200) | st.lists(ROWS.map(json.dumps)).map(lambda rows: "\n".join(rows).encode()))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json", "rows.jsonl.gz"])
def test_any_bytes_are_rows_or_one_line(name: str, content: bytes, tmp_path: Path) -> None:
    try:
        rows = read(tmp_path / name, content)
    except UserError as refused:
        assert "\n" not in str(refused)
    else:
        assert all(isinstance(row, dict | Malformed) for row in rows)
        for row in rows:
            with suppress(Malformed):
                math_task(row if isinstance(row, dict) else {})


@given(cut=st.integers(0, 2000))
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_parquet_file_cut_anywhere(cut: int, tmp_path: Path) -> None:
    pq.write_table(pa.table({"problem": ["p"] * 50, "answer": [1.5] * 50}), tmp_path / "whole.parquet")
    whole = (tmp_path / "whole.parquet").read_bytes()
    with pytest.raises(UserError):
        read(tmp_path / "rows.parquet", whole[: min(cut, len(whole) - 1)])
