"""Cases re-made from public reports, with the right verdict. Skipped where they aren't at hand."""

import json

import pytest

from recipe.flowrl.common.project import PROJECT
from recipe.flowrl.tasks.math.reward import compute_score

PATH = PROJECT.parent / "shared" / "cases" / "math.jsonl"
CASES = [json.loads(line) for line in PATH.read_text().splitlines()] if PATH.is_file() else []


@pytest.mark.skipif(not CASES, reason=f"no {PATH}")
def test_there_are_cases() -> None:
    assert {case["expected"] for case in CASES} == {"right", "wrong"}


@pytest.mark.parametrize("case", CASES, ids=[case["id"] for case in CASES])
def test_a_case_has_the_right_verdict(case: dict) -> None:
    score = compute_score("math", case["input"]["response"], case["input"]["reference"])
    assert ("right" if score["acc"] else "wrong") == case["expected"]
