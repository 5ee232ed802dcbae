"""The commands that measure the safety: programs that leave nothing, and text that nobody wrote."""

import json
from pathlib import Path

import pytest

from benchmarks import fuzz, leftovers
from recipe.flowrl.sandbox import bubblewrap


@pytest.mark.skipif(bubblewrap.problem() is not None, reason=f"no sandbox: {bubblewrap.problem()}")
def test_programs_are_counted_and_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leftovers, "_PROGRAMS", ("print(input())", "1 / 0"))
    out = tmp_path / "leftovers.json"
    assert leftovers.main(["--programs", "3", "--threads", "1", "--out", str(out)]) == 0
    assert leftovers.main(["--programs", "4", "--threads", "1", "--out", str(out)]) == 0
    told = json.loads(out.read_text())
    assert told["programs"] == 4 and told["ends"] == {"finished": 2, "failed": 2}
    assert [one["programs"] for one in told["pieces"]] == [3, 1]
    assert leftovers.main(["--programs", "9", "--seconds", "0", "--threads", "1", "--out", str(out)]) == 0
    assert json.loads(out.read_text())["programs"] == 5, "no program begins after its time"


def test_what_is_left_is_told() -> None:
    piece = {"seconds": 1.0, "ends": {"finished": 2}, "before": {"mounts": 3, "a": 1}, "after": {"mounts": 4, "a": 1}}
    assert leftovers.summary([piece, piece])["left"] == {"mounts": 2}


def test_a_finding_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def read(text: str) -> None:
        if len(text) > 3:
            raise KeyError(text)

    monkeypatch.setattr(fuzz, "READERS", {"good": (str, fuzz.TEXT, ()), "bad": (read, fuzz.TEXT, (ValueError,))})
    out = tmp_path / "fuzz.json"
    assert fuzz.main(["--seconds", "0.2", "--out", str(out)]) == 1
    readers = json.loads(out.read_text())["readers"]
    assert readers["good"]["inputs"] > 0 and not readers["good"]["findings"]
    ((kind, found),) = readers["bad"]["findings"].items()
    assert kind.startswith("KeyError at test_attacks.py") and found["times"] > 0
    monkeypatch.setattr(fuzz, "READERS", {"good": (str, fuzz.TEXT, ())})
    assert fuzz.main(["--seconds", "0.1"]) == 0


@pytest.mark.parametrize("name", sorted(fuzz.READERS.keys() - {"report"}))  # which takes seconds to be imported
def test_every_reader_reads(name: str) -> None:
    outcome = fuzz.fuzz(name, 0.2)
    assert outcome.inputs > 0 and not outcome.findings
