"""Every data source of every row of every file is looked at, and has a reward that doesn't run what a model wrote."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from omegaconf import OmegaConf

from recipe.flowrl.common.errors import UserError
from recipe.flowrl.preflight.data_files import check_data, not_looked_at, rows_by_source
from recipe.flowrl.preflight.reward import check_reward, check_reward_source

KEYS = ("data.train_files", "data.val_files")


def row(source: Any = "openai/gsm8k", **changes: Any) -> dict[str, Any]:
    return {
        "data_source": source,
        "prompt": [{"role": "user", "content": "1+1?"}],
        "reward_model": {"style": "rule", "ground_truth": "2"},
        "extra_info": {"index": 0},
    } | changes


def write(path: Path, rows: list[dict[str, Any]], group: int | None = None) -> str:
    if path.suffix == ".parquet":
        counted = path.stem != "uncounted"
        pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=group or len(rows), write_statistics=counted)
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows))
    else:
        path.write_text("".join(json.dumps(item, ensure_ascii=False) + "\n" for item in rows))
    return str(path)


def config(train: Any, val: Any, **changes: Any):
    made = OmegaConf.create(
        {
            "data": {
                "train_files": train,
                "val_files": val,
                "train_batch_size": 2,
                "prompt_key": "prompt",
                "custom_cls": {"path": None},
            },
            "reward": {
                "custom_reward_function": {"path": None, "name": "compute_score", "reward_kwargs": {}},
                "reward_model": {"enable": False, "model_path": None},
                "reward_manager": {"source": "register", "name": "naive"},
                "sandbox_fusion": {"url": None},
            },
            "ray_kwargs": {
                "ray_init": {"runtime_env": {"env_vars": {"VERL_USE_EXTERNAL_MODULES": "verl_ext.graders"}}}
            },
        }
    )
    for key, value in changes.items():
        OmegaConf.update(made, key.replace("__", "."), value)
    return made


def check(made) -> list[str]:
    check_data(made)
    check_reward_source(made)
    return check_reward(made, rows_by_source(made), not_looked_at(made))


def refusal(made) -> str:
    with pytest.raises(UserError) as refused:
        check(made)
    assert "\n" not in str(refused.value)
    return str(refused.value)


MANY = [row()] * 700


@pytest.mark.parametrize("name", ["last.parquet", "last.jsonl", "last.json"])
@pytest.mark.parametrize("place", [0, 1])
@pytest.mark.parametrize("source", ["numina_olympiads", "taco", "codeforces", "hiyouga/geometry3k", "nobody/knows"])
def test_one_row_anywhere_is_found(name: str, place: int, source: str, tmp_path: Path) -> None:
    good = write(tmp_path / "good.parquet", MANY, group=100)
    bad = write(tmp_path / name, [*MANY[:650], row(source)], group=100)
    files = [[good], [good]]
    files[place] = [good, bad]
    message = refusal(config(*files))
    assert f"{KEYS[place]}: {bad}, row 650" in message and source in message, message
    assert "set reward.custom_reward_function.path" in message and "reward=code" in message


def test_each_reward_is_named_with_what_it_scores(tmp_path: Path) -> None:
    train = write(tmp_path / "train.parquet", [row(), row("math_dapo"), row("lighteval/MATH")])
    val = write(tmp_path / "val.jsonl", [row("aime2024")])
    assert check(config(train, val)) == [
        "scored by verl's gsm8k: openai/gsm8k",
        "scored by verl's math_dapo: aime2024, math_dapo",
        "scored by verl's math_reward: lighteval/MATH",
    ]
    own = {"reward__custom_reward_function__path": "pkg://recipe.flowrl.tasks.math.reward"}
    (line,) = check(config(train, val, **own))
    assert line == (
        "scored by compute_score of pkg://recipe.flowrl.tasks.math.reward: aime2024, lighteval/MATH, math_dapo, "
        "openai/gsm8k"
    )


def test_programs_go_to_a_sandbox_server_if_there_is_one(tmp_path: Path) -> None:
    rows = [row("taco", reward_model={"style": "rule", "ground_truth": '{"inputs": ["1"], "outputs": ["1"]}'})] * 2
    made = config(write(tmp_path / "a.parquet", rows), write(tmp_path / "b.parquet", rows))
    assert "runs the model's programs without a sandbox" in refusal(made)
    made.reward.sandbox_fusion.url = "http://sandbox:8080/run_code"
    assert check(made) == ["scored by verl's sandbox_fusion: taco"]


@pytest.mark.parametrize(
    "changes",
    [
        {"reward__reward_manager__source": "importlib"},
        {"reward__reward_manager__name": "dapo"},
        {"reward__reward_manager__name": "remote"},
    ],
)
def test_no_reward_manager_goes_round_it(changes: dict[str, Any], tmp_path: Path) -> None:
    rows = write(tmp_path / "a.parquet", [row("numina_cn_k12")] * 2)
    assert "CVE-2026-6878" in refusal(config(rows, rows, **changes))


def test_a_reward_model_scores_them_all(tmp_path: Path) -> None:
    rows = write(tmp_path / "a.parquet", [row("numina_cn_k12")] * 2)
    changes = {"reward__reward_model__enable": True, "reward__reward_model__model_path": "/judge"}
    assert check(config(rows, rows, **changes)) == ["scored by the reward model /judge: numina_cn_k12"]


@pytest.mark.parametrize(
    "changes", [{"data__val_files": "s3://bucket/val.parquet"}, {"data__custom_cls__path": "mine.py"}]
)
def test_what_cannot_be_looked_at_needs_a_reward_of_ones_own(changes: dict[str, Any], tmp_path: Path) -> None:
    rows = write(tmp_path / "a.parquet", [row()] * 2)
    message = refusal(config(rows, rows, **changes))
    assert next(iter(changes.values())) in message and "can't be known before the run" in message
    own = {"reward__custom_reward_function__path": "pkg://recipe.flowrl.tasks.math.reward"}
    check(config(rows, rows, **changes, **own))


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("pkg://verl.utils.reward_score", "default_compute_score"),
        ("pkg://verl.utils.reward_score.prime_math", "compute_score"),
        ("pkg://verl.utils.reward_score.prime_code.utils", "check_correctness"),
        ("wrapper.py", "compute_score"),
    ],
)
def test_naming_verls_own_as_ones_own_does_not_help(path: str, name: str, tmp_path: Path) -> None:
    (tmp_path / "wrapper.py").write_text(
        "def compute_score(**given):\n    from verl.utils.reward_score import prime_math\n    return 0.0\n"
    )
    rows = write(tmp_path / "a.parquet", [row("numina_cn_k12")] * 2)
    own = {"path": path if "://" in path else str(tmp_path / path), "name": name}
    made = config(rows, rows)
    made.reward.custom_reward_function = {**own, "reward_kwargs": {}}
    assert "is shut" in refusal(made)


@pytest.mark.parametrize("modules", [None, "", "verl_ext.cpu", "my_plugin"])
def test_the_guard_cannot_be_left_out(modules: str | None, tmp_path: Path) -> None:
    rows = write(tmp_path / "a.parquet", [row()] * 2)
    made = config(rows, rows)
    made.ray_kwargs.ray_init.runtime_env.env_vars.VERL_USE_EXTERNAL_MODULES = modules
    assert f"set it to {','.join(filter(None, ['verl_ext.graders', modules]))}" in refusal(made)


BAD = [
    (row(None), "data_source is None"),
    (row(prompt=[]), "prompt is []"),
    (row(prompt=[{"role": "user", "content": None}]), "prompt has the message"),
    (row(prompt=None), "prompt is None"),
    (row(reward_model=None), "reward_model is None"),
    (row(reward_model={"style": "rule", "ground_truth": None}), "reward_model is {"),
]


@pytest.mark.parametrize(("bad", "problem"), BAD, ids=[problem for _, problem in BAD])
@pytest.mark.parametrize("name", ["bad.parquet", "uncounted.parquet", "bad.jsonl", "bad.json"])
def test_a_wrong_row_is_named_wherever_it_is(bad: dict, problem: str, name: str, tmp_path: Path) -> None:
    good = write(tmp_path / "good.parquet", MANY)
    path = write(tmp_path / name, [*MANY[:600], bad, *MANY[:5]], group=120)
    message = refusal(config(good, path))
    assert f"data.val_files: {path}, row 600: {problem}" in message


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b'{"data_source": "x"', "row 0: not a JSON object"),
        (b"\n\n", "has no rows"),
        ("{}".encode("utf-16"), "utf-16"),
        (b'{"data_source": "\x1b[31m"}', "not a JSON object"),
        (b'{"data_source": 5}', "row 0: data_source is 5"),
    ],
)
def test_json_files_that_verl_would_fail_on(content: bytes, problem: str, tmp_path: Path) -> None:
    (tmp_path / "bad.jsonl").write_bytes(content)
    assert problem in refusal(config(write(tmp_path / "good.parquet", MANY), str(tmp_path / "bad.jsonl")))


def test_rows_of_json_count_for_the_batch(tmp_path: Path) -> None:
    made = config(write(tmp_path / "a.jsonl", [row()] * 3), write(tmp_path / "b.json", [row()]))
    made.data.train_batch_size = 4
    assert "has 3 rows to train on" in refusal(made)


def test_only_one_column_is_read_of_a_large_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.parquet", MANY, group=350)
    read: list[Any] = []
    original = pq.ParquetFile.read_row_group

    def note(self: pq.ParquetFile, group: int, columns: Any = None, **more: Any) -> pa.Table:
        read.append(columns)
        return original(self, group, columns=columns, **more)

    monkeypatch.setattr(pq.ParquetFile, "read_row_group", note)
    assert set(rows_by_source(config(path, path))) == {"openai/gsm8k"}
    assert read == [["data_source"]] * 4


def test_no_data_source_reaches_the_terminal_as_it_is(tmp_path: Path) -> None:
    rows = write(tmp_path / "a.parquet", [row("\x1b[2Jgone\n")] * 2)
    assert "\x1b" not in refusal(config(rows, rows))
    own = {"reward__custom_reward_function__path": "pkg://recipe.flowrl.tasks.math.reward"}
    assert "\x1b" not in "".join(check(config(rows, rows, **own)))


def test_a_data_source_for_each_row(tmp_path: Path) -> None:
    rows = write(tmp_path / "a.parquet", [row(f"source {index:05}") for index in range(20_000)])
    own = {"reward__custom_reward_function__path": "pkg://recipe.flowrl.tasks.math.reward"}
    (line,) = check(config(rows, rows, **own))
    assert line.endswith("source 00011 and 19988 more")
    assert "row 0" in refusal(config(rows, rows))
