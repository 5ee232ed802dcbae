"""``data/arithmetic.py`` and ``rewards/arithmetic.py``."""

import re
import time
from decimal import InvalidOperation
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from recipe.flowrl.tasks.arithmetic.data import TEST_PAIRS, problems, write_dataset
from recipe.flowrl.tasks.arithmetic.reward import compute_score, last_number


def _operands(problem: str) -> tuple[int, ...]:
    return tuple(sorted(map(int, re.findall(r"\d+", problem))))


def test_answers_are_the_sums() -> None:
    for members in problems().values():
        for problem, answer in members:
            assert int(answer) == sum(_operands(problem)) and len(_operands(problem)) == 2
            assert "{" not in problem


def test_no_sum_of_the_test_split_is_trained_on() -> None:
    splits = {name: {_operands(problem) for problem, _ in members} for name, members in problems().items()}
    assert len(splits["test"]) == TEST_PAIRS
    assert not splits["test"] & splits["train"]


def test_problems_are_distinct_mixed_and_the_same_every_time() -> None:
    splits = problems()
    assert splits == problems()
    for members in splits.values():
        assert len(set(members)) == len(members) >= 256
        assert len({_operands(problem) for problem, _ in members[:16]}) > 4, "neighbours differ"


def test_rows_are_in_verls_schema(tmp_path: Path) -> None:
    paths = write_dataset(tmp_path / "arithmetic")
    assert paths == {split: tmp_path / "arithmetic" / f"{split}.parquet" for split in ("test", "train")}
    for split, path in paths.items():
        rows = pq.read_table(path).to_pylist()
        assert [row["extra_info"] for row in rows] == [{"index": i, "split": split} for i in range(len(rows))]
        problem, answer = problems()[split][0]
        assert rows[0] == {
            "data_source": "arithmetic",
            "prompt": [{"role": "user", "content": problem}],
            "ability": "arithmetic",
            "reward_model": {"style": "rule", "ground_truth": answer},
            "extra_info": {"index": 0, "split": split},
        }
    assert sorted(path.name for path in (tmp_path / "arithmetic").iterdir()) == ["test.parquet", "train.parquet"]


def test_files_are_the_same_every_time(tmp_path: Path) -> None:
    first, second = write_dataset(tmp_path / "a"), write_dataset(tmp_path / "b")
    assert all(first[split].read_bytes() == second[split].read_bytes() for split in first)


def test_every_row_is_solved_by_its_answer_only() -> None:
    for problem, answer in problems()["test"]:
        assert compute_score("arithmetic", f"{problem} {answer}.", answer)["score"] == 1.0
        assert compute_score("arithmetic", problem, answer)["score"] == 0.0, "the problem repeated is no answer"


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("8", 8),
        ("The answer is 8.", 8),
        ("3 + 5 = 8", 8),
        ("8 apples, not 7", 7),
        ("**8.0**", 8),
        ("\\boxed{8}", 8),
        ("1,008 coins", 1008),
        ("5, 6, 8", 8),
        ("10-8", 8),
        ("x = -8", -8),
        ("x = −8", -8),
        ("-8", -8),
        ("(4)-8", 8),
        ("0.5", 0.5),
        ("08", 8),
        ("1e9", 9),
        ("8<|im_end|>", 8),
        ("eight", None),
        ("", None),
        ("٨", None),  # a digit, but not of the alphabet that the answer is written in
        ("8" * 33, None),
    ],
)
def test_last_number(text: str, number: float | None) -> None:
    assert last_number(text) == number


def test_score_of_right_and_wrong() -> None:
    right = {"score": 1.0, "acc": 1.0, "solution": "8", "n_solutions": 1.0}
    assert compute_score("arithmetic", "It is 8.00", "8", extra_info={"index": 0}, anything="else") == right
    wrong = {"score": 0.0, "acc": 0.0, "solution": "", "n_solutions": 1.0}
    assert compute_score("arithmetic", "It is 8 or 9", "8") == wrong
    assert compute_score("arithmetic", "", "8") == wrong


@pytest.mark.parametrize(
    "text",
    [
        "9" * 1_000_000,
        "9," * 500_000,
        "1,000" * 200_000,
        "1." * 500_000,
        "-" * 1_000_000,
        "9**9**9**9",
        "(" * 100_000 + "8" + ")" * 100_000 + "0",
        "1e999999999",
        "\x00\ud800\u202e 7",
        "__import__('os').abort()",
    ],
    ids=lambda text: repr(text[:10]),
)
def test_hostile_text_is_wrong_and_quick(text: str) -> None:
    started = time.process_time()
    assert compute_score("arithmetic", text, "8")["score"] == 0.0
    assert time.process_time() - started < 2


def test_a_ground_truth_that_is_no_number_is_refused() -> None:
    with pytest.raises(InvalidOperation):
        compute_score("arithmetic", "8", "eight")
