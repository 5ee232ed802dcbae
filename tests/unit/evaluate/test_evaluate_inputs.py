"""What an evaluation is given: arguments, prepared data, models."""

import errno
import fcntl
import shutil
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from recipe.flowrl.common.command_line import parse
from recipe.flowrl.common.errors import UserError
from recipe.flowrl.common.files import alone_in
from recipe.flowrl.evaluate.benchmarks import load
from recipe.flowrl.evaluate.evaluate_options import Options
from recipe.flowrl.evaluate.model_path import model_directory, model_fingerprint, model_name
from recipe.flowrl.evaluate.vllm_engine import VLLMEngine
from recipe.flowrl.tasks.manifest import write_manifest
from recipe.flowrl.tasks.parquet import prompt_row, write_rows
from recipe.flowrl.tasks.tiny_qwen2 import TinyQwen2Config, build


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """The directory of a benchmark of four problems."""
    directory = tmp_path / "data"
    rows = [prompt_row("amc23", "math", f"{index}+1", str(index + 1), index, "test") for index in range(4)]
    write_rows(directory / "test_amc23.parquet", rows)
    return directory


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
        (["model=m", "suite=code", "contests=/nowhere"], "contests=/nowhere: must be a directory that exists"),
        (["model"], "expected KEY=VALUE"),
    ],
)
def test_wrong_arguments(arguments: list[str], named: str) -> None:
    with pytest.raises(UserError, match=named):
        parse(Options, arguments)


def test_right_arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLOWRL_CACHE", str(tmp_path))
    arguments = "model=a/b suite=math benchmarks=amc23,math500 n=2 top_p=1 engine.tensor_parallel_size=4"
    given = parse(Options, arguments.split())
    assert given == Options(
        *("a/b", "math", ("amc23", "math500"), tmp_path / "math", Path("outputs/evaluation/b/math")),
        n=2,
        top_p=1.0,
        engine={"tensor_parallel_size": 4},
    )
    assert parse(Options, ["model=m", "suite=countdown"]).max_tokens == 32
    assert parse(Options, ["model=m", "suite=math"]).max_tokens == 8192


def test_missing_data_says_how_to_make_it(data: Path) -> None:
    with pytest.raises(UserError, match=r"prepare math out=.*benchmarks=amc23$"):
        load("math", ("amc23", "minerva"), data)


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


def one(**changes: Any) -> dict[str, Any]:
    return prompt_row("amc23", "math", "1+1", "2", 0, "test") | changes


def truth(value: Any) -> dict[str, Any]:
    return one(reward_model={"style": "rule", "ground_truth": value})


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        (truth(2), "reward_model.ground_truth: 2, not text"),
        (truth(2.5), "reward_model.ground_truth: 2.5, not text"),
        (truth(None), "reward_model.ground_truth: None, not text"),
        (truth(["2"]), "reward_model.ground_truth: ['2'], not text"),
        (truth(True), "reward_model.ground_truth: True, not text"),
        (truth({"target": ["2"]}), "reward_model.ground_truth: {'target': ['2']}, not text"),
        (truth(" "), "reward_model.ground_truth: ' ', not text"),
        (one(reward_model="2"), "reward_model: a value of type str, not an object"),
        (one(prompt="1+1"), "prompt: '1+1', not a turn"),
        (one(prompt=[{"role": "user", "content": ""}]), "not a turn of the user with text"),
        (one(prompt=[{"role": "system", "content": "1+1"}]), "not a turn of the user with text"),
        (one(prompt=[{"role": "user", "content": "a"}] * 2), "prompt: several turns of the user"),
        (one(extra_info=None), "extra_info: None"),
        (one(extra_info={"index": "d0a6-UUID"}), "extra_info.index: 'd0a6-UUID', not a number"),
        (one(extra_info={"index": True}), "extra_info.index: True"),
        (one(extra_info={"index": 1.5}), "extra_info.index: 1.5"),
        (one(extra_info={"index": None}), "extra_info.index: None"),
        (one(extra_info={"index": 0, "tolerance": "0.1"}), "extra_info.tolerance: '0.1'"),
        (one(extra_info={"index": 0, "tolerance": float("nan")}), "extra_info.tolerance: nan"),
    ],
)
def test_a_wrong_row_is_refused_with_its_field(row: dict[str, Any], problem: str, tmp_path: Path) -> None:
    write_rows(tmp_path / "test_amc23.parquet", [row])
    with pytest.raises(UserError) as refused:
        load("math", ("amc23",), tmp_path)
    message = str(refused.value)
    assert f"{tmp_path / 'test_amc23.parquet'}, row 0" in message and problem in message and "\n" not in message


def test_a_wrong_row_further_on_is_refused_as_well(tmp_path: Path) -> None:
    rows = [prompt_row("amc23", "math", f"{index}+1", str(index + 1), index, "test") for index in range(400)]
    write_rows(tmp_path / "test_amc23.parquet", [*rows, truth(None)])
    with pytest.raises(UserError, match="row 400: .*reward_model.ground_truth: None"):
        load("math", ("amc23",), tmp_path, limit=4)


def test_repeated_problems_count_once(tmp_path: Path) -> None:
    rows = [prompt_row("amc23", "math", f"{index % 30}+1", str(index % 30 + 1), index, "test") for index in range(960)]
    write_rows(tmp_path / "test_amc23.parquet", rows)
    (benchmark,) = load("math", ("amc23",), tmp_path)
    assert len(benchmark.problems) == 30 and benchmark.repeated == 930
    (first,) = load("math", ("amc23",), tmp_path, limit=5)
    assert [problem.id for problem in first.problems] == [f"amc23/{index}" for index in range(5)]
    write_rows(tmp_path / "test_amc23.parquet", [*rows, prompt_row("amc23", "math", "3+1", "5", 960, "test")])
    with pytest.raises(UserError, match="row 960: the problem of row 3 with another reference"):
        load("math", ("amc23",), tmp_path)


def test_one_evaluation_at_a_time(tmp_path: Path) -> None:
    with alone_in(tmp_path), pytest.raises(UserError, match="another process"):
        with alone_in(tmp_path):
            pass
    with alone_in(tmp_path):
        pass


@pytest.mark.parametrize(("number", "goes_on"), [(errno.ENOSYS, True), (errno.ENOLCK, True), (errno.EIO, False)])
def test_a_file_system_without_locks_stops_nobody(
    number: int, goes_on: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def flock(*_: object) -> None:
        raise OSError(number, "from the file system")

    monkeypatch.setattr(fcntl, "flock", flock)
    with nullcontext() if goes_on else pytest.raises(OSError, match="from the file system"):
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
