"""The exact test, the objective alone: FlowRL reaches the target distribution, GRPO doesn't."""

import json
from pathlib import Path

import pytest

from recipe.flowrl.__main__ import main


def test_flowrl_reaches_the_target_and_grpo_collapses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLOWRL_CACHE", str(tmp_path / "cache"))
    assert main(["distribution", "algo=flowrl,grpo", "mode=objective", f"run_dir={tmp_path}"]) == 0
    flowrl, grpo = (json.loads((tmp_path / name / "result.json").read_text())["worst"] for name in ("flowrl", "grpo"))
    assert flowrl["kl_policy_target"] <= 0.01
    assert flowrl["log_z_error"] <= 0.02
    assert flowrl["modes_covered"] == 1.0
    assert grpo["kl_policy_target"] > 1.0
    report = (tmp_path / "report.html").read_text()
    assert "<svg" in report and "flowrl" in report and "grpo" in report
