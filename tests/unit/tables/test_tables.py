"""Tables: the published figures, protocols, cells, paired differences, formats, and the command."""

import csv
import io
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from evaluations import PROTOCOL, benchmark_summary, write_evaluation
from pylatexenc.latexwalker import LatexEnvironmentNode, LatexWalker

from recipe.flowrl.__main__ import main
from recipe.flowrl.common.files import write_json
from recipe.flowrl.common.statistics import bootstrap
from recipe.flowrl.diversity.evaluations import KINDS
from recipe.flowrl.tables.numbers import TITLES, Cell, cell, mean_over_columns, paired, per_problem
from recipe.flowrl.tables.published import TRUST, published_diversity, published_tables
from recipe.flowrl.tables.render import cell_text, escape
from recipe.flowrl.tables.systems import read_system

MATH = ("aime2024", "aime2025", "amc23", "math500", "minerva", "olympiadbench")


@pytest.mark.parametrize("table", published_tables(), ids=lambda table: table.key)
def test_published_averages_follow_from_the_columns(table) -> None:
    assert table.trust in TRUST and all(column.split(":")[0] in KINDS for column in table.columns)
    for row in table.systems.values():
        assert len(row.values) == len(table.columns)
        if table.has_average:
            assert np.mean(row.values) == pytest.approx(row.average, abs=0.0101), row.name
    assert table.has_average == (table.columns == MATH)


def test_published_figures_agree_where_they_stand_twice() -> None:
    tables = {table.key: table for table in published_tables()}
    flowrl = [tables[key].systems["flowrl"] for key in ("table1_7b", "table3", "table7")]
    assert all(row.values == flowrl[0].values and row.average == flowrl[0].average for row in flowrl)
    assert tables["log_z"].systems["flowrl"].values[0] == flowrl[0].values[0]
    assert {key for key, table in tables.items() if table.trust == "S"} == {"log_z", "log_z_depth"}
    assert len(tables) == 9 and [score for _, score in published_diversity().systems.values()] == [
        1.11,
        1.23,
        1.31,
        2.28,
    ]


def test_every_benchmark_has_a_title() -> None:
    assert TITLES.keys() == KINDS.keys()


def test_cells() -> None:
    found = {
        "livecodebench": benchmark_summary({"a": 4, "b": 0}, 16),
        "codeforces": {"rating": 1500.0, "percentile": 0.8},
    }
    assert cell(found, "livecodebench").value == pytest.approx(12.5)
    assert cell(found, "livecodebench:pass@16").value == pytest.approx(50.0)
    assert per_problem(found, "livecodebench:pass@16") == {"a": 100.0, "b": 0.0}
    assert per_problem(found, "livecodebench") == {"a": 25.0, "b": 0.0}
    assert cell(found, "codeforces:percentile") == Cell(80.0)
    assert cell({"codeforces": {"rating": None, "percentile": None}}, "codeforces:percentile") == Cell()
    assert cell(found, "codeforces:rating") == Cell(1500.0) and per_problem(found, "codeforces:rating") is None
    for gone in ("aime2024", "livecodebench:pass@64"):
        assert cell(found, gone) == Cell() and per_problem(found, gone) is None
    assert Cell(5.0, 4.0, 7.0).minus(Cell(6.0)) == Cell(-1.0, -2.0, 1.0)
    assert Cell(5.0).minus(Cell()) == Cell() == Cell().minus(Cell(5.0))


def test_means_over_columns_weigh_columns_alike_and_have_the_right_spread() -> None:
    rng = np.random.default_rng(1)
    small, large = rng.normal(10, 5, size=30), rng.normal(50, 5, size=500)
    one = mean_over_columns([small])
    assert (one.value, one.low, one.high) == pytest.approx(bootstrap(small[None]), abs=0.3)
    both = mean_over_columns([small, large])
    assert both.value == pytest.approx((small.mean() + large.mean()) / 2)
    error = np.sqrt(small.var() / 30 + large.var() / 500) / 2
    assert both.high - both.low == pytest.approx(2 * 1.96 * error, rel=0.1)


def test_pairing_takes_the_difficulty_of_problems_out() -> None:
    rng = np.random.default_rng(2)
    hardness = {str(i): value for i, value in enumerate(rng.uniform(0, 100, size=60))}
    better = {problem: value + rng.normal(5, 1) for problem, value in hardness.items()} | {"other": 0.0}
    found = mean_over_columns([paired(better, hardness)])
    apart = [mean_over_columns([list(values.values())]) for values in (better, hardness)]
    assert found.low > 4 and found.high < 6
    assert apart[0].low < apart[1].high  # unpaired, the intervals overlap
    assert paired(None, better) == [] == paired({"x": 1.0}, better)


def _evaluation(
    directory: Path, rates: Mapping[str, float], problems: int = 20, seed: int = 0, **protocol: Any
) -> Path:
    """A summary without samples: benchmark -> share of right answers."""
    rng = np.random.default_rng(seed)
    n = protocol.get("n", 16)
    facts = PROTOCOL | {"benchmarks": {name: {"sha256": f"{name:0<64}", "problems": problems} for name in rates}}
    summaries = {
        name: benchmark_summary({f"{name}/{i}": int(c) for i, c in enumerate(rng.binomial(n, rate, size=problems))}, n)
        for name, rate in rates.items()
    }
    write_json(directory / "summary.json", {"protocol": facts | protocol, "benchmarks": summaries})
    return directory


def _rows(out: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO((out / "tables.csv").read_text())))


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


def test_table_1_has_ours_the_papers_and_the_difference(tmp_path: Path, out: Path) -> None:
    runs = [
        _evaluation(tmp_path / "math_7b" / name, dict.fromkeys(MATH, rate))
        for name, rate in (("flowrl", 0.4), ("grpo", 0.3))
    ]
    assert main(["tables", *map(str, runs), f"out={out}"]) == 0
    cells = {(r["row"], r["figures"], r["column"]): r for r in _rows(out) if r["table"] == "table1_7b"}
    ours, paper, difference = (cells["FlowRL", s, "AIME24 Avg@16"] for s in ("ours", "paper", "ours − paper"))
    assert paper["value"] == "15.41" and paper["low"] == "" and float(ours["low"]) < float(ours["value"])
    for end in ("value", "low", "high"):
        assert float(difference[end]) == pytest.approx(float(ours[end]) - 15.41, abs=1e-3)
    means = [float(cells["FlowRL", "ours", f"{t} Avg@16"]["value"]) for t in (TITLES[name] for name in MATH)]
    assert float(cells["FlowRL", "ours", "mean"]["value"]) == pytest.approx(np.mean(means), abs=1e-3)
    assert ("PPO", "ours", "mean") not in cells and cells["PPO", "paper", "mean"]["value"] == "31.98"
    notes = ours["notes"]
    assert "Not evaluated here: Backbone, REINFORCE++, PPO." in notes and "without intervals" in notes
    tables = {r["table"] for r in _rows(out)}
    assert {"table1_7b", "table3", "table7", "log_z", "paired_math_7b", "figure4", "answers_math_7b"} <= tables
    assert "table5" not in tables and "table1_32b" not in tables
    pair = next(r for r in _rows(out) if r["table"] == "paired_math_7b" and r["column"] == "mean")
    assert pair["row"] == "flowrl − grpo" and 5 < float(pair["low"]) < float(pair["value"]) < 15


def test_avg_64_goes_beside_the_tables_of_avg_64(tmp_path: Path, out: Path) -> None:
    cold = _evaluation(tmp_path / "cold" / "math_7b" / "flowrl", dict.fromkeys(MATH, 0.4), n=64)
    hot = _evaluation(tmp_path / "hot" / "math_7b" / "flowrl", dict.fromkeys(MATH, 0.3), n=64, temperature=1.0)
    assert main(["tables", str(cold), str(hot), f"out={out}"]) == 0
    ours = {r["table"] for r in _rows(out) if r["figures"] == "ours" and r["row"] == "FlowRL"}
    assert ours == {"table5", "table6"}
    assert any(
        "temperature: 0.6 (flowrl (n=64, T=0.6)), 1.0 (flowrl (n=64, T=1.0))" in r["notes"]
        for r in _rows(out)
        if r["table"] == "paired_math_7b"
    )


def test_ablations_stand_in_their_tables_and_others_beside_table_1(tmp_path: Path, out: Path) -> None:
    names = ("flowrl", "flowrl_no_is", "flowrl_beta_30", "flowrl_no_log_z", "gspo")
    runs = [_evaluation(tmp_path / "math_7b" / name, dict.fromkeys(MATH, 0.4), seed=i) for i, name in enumerate(names)]
    assert main(["tables", *map(str, runs), f"out={out}"]) == 0
    ours = {(r["table"], r["row"]) for r in _rows(out) if r["figures"] == "ours" and r["value"]}
    assert ("table3", "FlowRL without importance sampling") in ours and ("table7", "β = 30") in ours
    assert ("log_z", "log Z removed") in ours and ("table1_7b", "gspo") in ours
    assert ("table1_7b", "flowrl_no_is") not in ours and ("table3", "gspo") not in ours


def test_code_table_with_missing_cells(tmp_path: Path, out: Path) -> None:
    run = _evaluation(tmp_path / "code_7b" / "flowrl", {"livecodebench": 0.3})
    assert main(["tables", str(run), f"out={out}"]) == 0
    text = (out / "tables.md").read_text()
    line = next(line for line in text.splitlines() if line.startswith("| FlowRL | ours |"))
    assert line.endswith("| – | – | – |") and line.count("[") == 2
    missing = [
        r for r in _rows(out) if r["table"] == "table2" and r["figures"] == "ours" and "Codeforces" in r["column"]
    ]
    assert len(missing) == 2 and all(r["value"] == "" for r in missing)


def test_a_group_that_the_paper_lacks_has_a_table_of_its_own(tmp_path: Path, out: Path) -> None:
    run = _evaluation(tmp_path / "countdown" / "base", {"countdown": 0.2}, temperature=1.0)
    assert main(["tables", f"tiny/system={run}", f"out={out}"]) == 0
    assert {(r["row"], r["column"]) for r in _rows(out) if r["table"] == "group_tiny"} == {
        ("system", "Countdown Avg@16"), ("system", "Countdown Pass@16"),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("changed", "field", "words"),
    [
        ({"n": 8}, "n", "8 (grpo)"),
        ({"temperature": 1.0}, "temperature", "1.0 (grpo)"),
        ({"top_p": 1.0}, "top_p", "1.0 (grpo)"),
        ({"max_tokens": 4096}, "max_tokens", "4096 (grpo)"),
        ({"grader": "grader 2"}, "grader", "grader 2 (grpo)"),
        ({"benchmarks": {"aime2024": {"sha256": "other"}}}, "benchmarks", "the files of aime2024"),
    ],
)
def test_different_protocols_are_refused_or_noted_in_every_format(
    tmp_path: Path, out: Path, changed: dict[str, Any], field: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [
        str(_evaluation(tmp_path / "math_7b" / "flowrl", {"aime2024": 0.4})),
        str(_evaluation(tmp_path / "math_7b" / "grpo", {"aime2024": 0.4}, **changed)),
    ]
    assert main(["tables", *runs, f"out={out}"]) == 2
    err = capsys.readouterr().err
    assert f"allow={field}" in err and words in err and not out.exists()
    assert main(["tables", *runs, f"out={out}", f"allow={field}"]) == 0
    for name in ("md", "tex", "csv", "html"):
        text = (out / f"tables.{name}").read_text()
        assert "Different protocols" in text and words.split(" (")[0] in text, name


def test_a_protocol_unlike_the_papers_is_refused(tmp_path: Path, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = _evaluation(tmp_path / "math_7b" / "flowrl", {"aime2024": 0.4}, n=4)
    assert main(["tables", str(run), f"out={out}"]) == 2
    assert "16 (the paper)" in capsys.readouterr().err
    assert main(["tables", str(run), f"out={out}", "allow=all"]) == 0


def test_fewer_problems_of_the_same_file_are_another_benchmark(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [
        _evaluation(tmp_path / "math_7b" / name, {"aime2024": 0.4}, problems=p)
        for name, p in (("flowrl", 20), ("ppo", 9))
    ]
    assert main(["tables", *map(str, runs)]) == 2
    assert "the number of problems of aime2024" in capsys.readouterr().err


def _known_diversity(directory: Path, ways: int, **protocol: Any) -> Path:
    answers = [(f"{i % ways + 1}+{9 - i % ways}", True, "x") if i < 12 else ("?", False, None) for i in range(16)]
    write_evaluation(directory, {"countdown": {f"p{i}": answers for i in range(6)}}, **protocol)
    return directory


def test_diversity_is_compared_on_shared_problems_and_unmeasured_systems_are_gaps(tmp_path: Path, out: Path) -> None:
    runs = [_known_diversity(tmp_path / "countdown" / name, ways) for name, ways in (("flowrl", 4), ("grpo", 1))]
    assert main(["diversity", *map(str, runs), "embedding=null"]) == 0
    other = _known_diversity(tmp_path / "countdown" / "later", 1)
    assert main(["tables", *map(str, runs), str(other), f"out={out}"]) == 0
    rows = [r for r in _rows(out) if r["row"] == "distinct solution forms"]
    correct = {r["column"]: r for r in rows if r["table"] == "diversity_countdown_countdown_correct"}
    # Four forms, three answers each: C(9, 8) of the C(12, 8) draws of eight lack a form.
    assert float(correct["flowrl"]["value"]) == pytest.approx(4 * (1 - 9 / 495), abs=1e-4)
    assert correct["grpo"]["value"] == "1" and correct["later"]["value"] == ""
    assert "at 8 answers of each problem" in correct["grpo"]["notes"] and "6 problems, of 6" in correct["grpo"]["notes"]
    pair = next(r for r in rows if r["table"].startswith("paired_") and r["table"].endswith("correct"))
    assert pair["column"] == "flowrl − grpo" and float(pair["low"]) > 2
    assert (out / "tables.html").read_text().count("<svg") >= 5


def test_the_judges_scores_stand_beside_figure_4(tmp_path: Path, out: Path) -> None:
    run = _evaluation(tmp_path / "math_7b" / "flowrl", {"aime2024": 0.4})
    scores = {"populations": {"correct": {"scores": {}}, "all": {"scores": {"a": [2, 3], "b": [4]}}}}
    judge = {"model": "some-judge", "responses": 16, "repeats": 2} | scores
    values = {"correct": {}, "all": {}}
    write_json(
        run / "diversity.json", {"embedding": None, "benchmarks": {"aime2024": {"judge": judge, "values": values}}}
    )
    assert main(["tables", str(run), f"out={out}"]) == 0
    cells = {(r["row"], r["column"]): r for r in _rows(out) if r["table"] == "figure4"}
    assert cells["flowrl (math_7b)", "judge, all answers"]["value"] == "3.25"
    assert cells["flowrl (math_7b)", "judge, correct answers"]["value"] == ""
    assert cells["FlowRL", "judge, all answers"]["value"] == "2.28"
    assert "some-judge, 16 responses, 2 repeats" in cells["FlowRL", "judge, all answers"]["notes"]


def test_latex_is_well_formed_and_has_all_cells(tmp_path: Path, out: Path) -> None:
    run = _evaluation(tmp_path / "math_7b" / "a_b%&$#{}~^\\", dict.fromkeys(MATH, 0.4))
    assert main(["tables", str(run), f"out={out}"]) == 0
    text = (out / "tables.tex").read_text()
    nodes, _, _ = LatexWalker(text, tolerant_parsing=False).get_latex_nodes()
    assert sum(isinstance(node, LatexEnvironmentNode) for node in nodes) == text.count(r"\begin{table}") == 3
    for shape, body in re.findall(r"\\begin\{tabular\}\{(l+r+)\}(.*?)\\end\{tabular\}", text, re.DOTALL):
        lines = [line for line in body.splitlines() if line.endswith(r"\\")]
        assert len(lines) > 1 and all(len(re.findall(r"(?<!\\)&", line)) == len(shape) - 1 for line in lines)
    assert escape("50% of a_b & −1") == r"50\% of a\_b \& $-$1"


def test_cell_texts() -> None:
    assert cell_text(Cell(), 1, False) == "–"
    assert cell_text(Cell(12.34), 1, False) == "12.3"
    assert cell_text(Cell(-1.26, -3.0, 0.5), 1, True) == "−1.3 [−3.0, +0.5]"


def test_names_from_a_checkpoint_a_label_or_the_directory(tmp_path: Path) -> None:
    plain = _evaluation(tmp_path / "math_7b" / "grpo", {"aime2024": 0.1})
    trained = _evaluation(tmp_path / "x", {"aime2024": 0.1}, model="/runs/math_32b/ppo/checkpoints/global_step_200")
    found = [read_system(plain), read_system(trained), read_system(trained, "mine"), read_system(plain, "g/h")]
    assert [(s.group, s.name) for s in found] == [
        ("math_7b", "grpo"), ("math_32b", "ppo"), ("math_32b", "mine"), ("g", "h"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "EVALUATION is missing"),
        (["nowhere"], "no such directory"),
        (["{run}", "alow=n"], "did you mean 'allow'"),
        (["{run}", "allow=temprature"], "did you mean 'temperature'"),
        (["{run}", "reference=ppo"], "no such system; there are flowrl"),
        (["{run}", "flowrl={run}"], "name them"),
        (["{empty}"], "continue the evaluation"),
    ],
)
def test_wrong_arguments(
    tmp_path: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run = _evaluation(tmp_path / "math_7b" / "flowrl", {"aime2024": 0.1})
    (tmp_path / "empty").mkdir()
    assert main(["tables", *(argument.format(run=run, empty=tmp_path / "empty") for argument in arguments)]) == 2
    assert message in capsys.readouterr().err


HOSTILE = [
    "=cmd|' /C calc'!A0",
    "+1",
    "-1",
    "@SUM(1)",
    "\t=1",
    "<img src=x onerror=alert(1)>",
    "a|b",
    "[x](javascript:1)",
    "\\input{/etc/passwd}",
]


@pytest.mark.parametrize("name", HOSTILE)
def test_names_are_escaped_for_where_they_go(name: str) -> None:
    from recipe.flowrl.tables import render
    from recipe.flowrl.tables.blocks import Block, Row
    from recipe.flowrl.tables.numbers import Cell

    block = Block(
        key=name, title=name, columns={name: 1}, rows=[Row(name, name, [Cell(1.0)])], notes=[f"{name}\n\n# x"]
    )
    for row in csv.reader(io.StringIO(render.csv_text([block]))):
        assert not any(cell.startswith(("=", "+", "-", "@", "\t", "\r")) for cell in row)
    text = render.markdown([block])
    assert "<img" not in text and not re.search(r"(?<!\\)\]\(", text) and "\n# x" not in text
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table}) == 1
    tex = render.latex([block])
    assert "\\input{" not in tex and re.search(r"\\label\{tab:[A-Za-z0-9.:-]+\}", tex)
