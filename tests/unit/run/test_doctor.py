"""The doctor: a line for each check, also after a failure, and an exit status that tells."""

from importlib import metadata
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recipe.flowrl.__main__ import main
from recipe.flowrl.common.errors import UserError
from recipe.flowrl.preflight import accelerator
from recipe.flowrl.preflight.compose import compose_run
from recipe.flowrl.run import doctor
from recipe.flowrl.tasks.parquet import prompt_row

CPU = ["experiment=countdown_cpu"]
GPU_IMPORTS = doctor._GPU_IMPORTS


@pytest.fixture(autouse=True)
def quick_imports(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_IMPORTS", {"json": "import json"})
    monkeypatch.setattr(doctor, "_GPU_IMPORTS", {})


def lines_of(capsys, *arguments: str) -> tuple[int, dict[str, tuple[str, str]]]:
    """The exit status, and by check: the verdict and what was said."""
    status = main(["doctor", *arguments])
    lines = {}
    for line in capsys.readouterr().out.splitlines():
        verdict, rest = line.split(maxsplit=1)
        name, _, said = rest.partition(": ")
        lines[name] = (verdict, said)
    return status, lines


def test_a_machine_without_a_gpu_is_well_for_a_cpu_run(tmp_path: Path, capsys) -> None:
    status, lines = lines_of(capsys, *CPU, f"cache_dir={tmp_path}", f"run_dir={tmp_path}/run")
    assert status == 0, lines
    assert set(lines) == {check.name for check in (*doctor.ENVIRONMENT, *doctor.RUN)}
    assert lines["GPUs"] == ("ok", "none needed (trainer.device=cpu)")
    assert lines["reward"] == ("skipped", "needs the data") and lines["plan"][0] == "skipped"
    assert lines["host memory"][0] == "skipped" and lines["driver"] == ("ok", "none needed (trainer.device=cpu)")


def test_all_is_checked_although_something_fails(tmp_path: Path, capsys) -> None:
    run = ["experiment=math_7b", "cluster=1x8", f"data_dir={tmp_path}", f"run_dir={tmp_path}/run"]
    status, lines = lines_of(capsys, *run, "data.train_batch_size=500")
    assert status == 1
    assert lines["versions"][0] == "FAILED" and doctor.INSTALL in lines["versions"][1]
    assert lines["GPUs"][0] == "FAILED" and lines["data"][0] == "FAILED"
    assert lines["configuration"][0] == "FAILED" and "train_batch_size=500" in lines["configuration"][1]
    assert lines["imports"][0] == "ok" and lines["reward"] == ("skipped", "needs the data")


def test_the_reward_is_called_on_a_row(tmp_path: Path, capsys) -> None:
    rows = [prompt_row("math_dapo", "math", "1+1?", "2", index, "train") for index in range(512)]
    for name in ("train", "test_aime2024", "test_aime2025"):
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / f"{name}.parquet")
    run = ["experiment=math_7b", "cluster=1x8", f"data_dir={tmp_path}", f"run_dir={tmp_path}/run"]
    assert lines_of(capsys, *run)[1]["reward"] == ("ok", "graded an answer to a row of math_dapo")
    wrong = lines_of(capsys, *run, "reward.custom_reward_function.reward_kwargs.rule=strict")[1]["reward"]
    assert wrong[0] == "FAILED" and "math_verify or math_dapo" in wrong[1]


def test_without_an_experiment_only_the_environment_is_looked_at(capsys) -> None:
    _, lines = lines_of(capsys, "cluster=cpu")
    assert set(lines) == {check.name for check in doctor.ENVIRONMENT}


def test_a_package_that_cannot_be_imported_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_IMPORTS", {"json": "import json", "this": "import no_such_package"})
    with pytest.raises(UserError, match="this can't be imported .ModuleNotFoundError: No module named 'no_such"):
        doctor._imports(compose_run(["cluster=cpu"]))


@pytest.mark.parametrize(
    ("backend", "broken", "message"),
    [
        ("naive", "vllm", "vLLM's kernels can't be imported .ImportError: .*undefined symbol"),
        ("nccl", "cupy", "cupy's NCCL can't be imported .ModuleNotFoundError"),
        ("naive", "cupy", None),
    ],
)
def test_what_only_gpu_runs_need_is_imported_for_them(
    backend: str, broken: str, message: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With stand-ins for the packages, of which one is broken."""
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text("class cuda:\n  class nccl:\n    version = lambda: (2, 28, 9)\n")
    for name, module, fault in (
        ("vllm", "_C_stable_libtorch.py", "raise ImportError('_C.so: undefined symbol: _ZN3c10')"),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").touch()
        (tmp_path / name / module).write_text(fault if broken == name else "")
    (tmp_path / "cupy").mkdir()
    (tmp_path / "cupy" / "__init__.py").write_text("import no_such_library" if broken == "cupy" else "")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(doctor, "_GPU_IMPORTS", GPU_IMPORTS)
    config = compose_run(
        ["experiment=math_7b", "cluster=1x8", f"actor_rollout_ref.rollout.checkpoint_engine.backend={backend}"]
    )
    if message is None:
        assert doctor._imports(config) == "json, vLLM's kernels, NCCL"
        return
    with pytest.raises(UserError, match=message) as refused:
        doctor._imports(config)
    assert str(refused.value).endswith(doctor.INSTALL)


def test_a_broken_flash_attention_is_a_failure_and_none_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    config = compose_run(["experiment=math_7b", "cluster=1x8"])
    monkeypatch.setattr(accelerator, "flash_attention_fault", lambda: "flash-attn isn't installed")
    monkeypatch.setattr(doctor, "flash_attention_fault", lambda: "flash-attn isn't installed")
    assert doctor._attention(config).startswith("attention: sdpa, since flash-attn isn't installed")
    monkeypatch.setattr(doctor, "flash_attention_fault", lambda: "flash-attn 2.8.3 can't be imported (symbol)")
    monkeypatch.setattr(doctor.util, "find_spec", lambda name: object())
    with pytest.raises(UserError, match=r"\(symbol\): it was built for another torch .*pip uninstall"):
        doctor._attention(config)


@pytest.mark.parametrize(
    ("available", "overrides", "said"),
    [
        (40e9, [], "40 GB available, 62 needed"),
        (70e9, [], None),
        (70e9, ["actor_rollout_ref.ref.fsdp_config.model_dtype=fp32"], "70 GB available, 77 needed"),
        (150e9, ["actor_rollout_ref.actor.fsdp_config.optimizer_offload=true"], None),
        (70e9, ["actor_rollout_ref.actor.fsdp_config.optimizer_offload=true"], "70 GB available, 92 needed"),
    ],
)
def test_host_memory_is_held_against_loading_and_the_reference(
    available: float, overrides: list[str], said: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "available_memory", lambda: available)
    config = compose_run(["experiment=math_7b", "cluster=1x8", *overrides])
    if said is None:
        assert "needed on this node" in doctor._host_memory(config)
        return
    with pytest.raises(UserError, match=said):
        doctor._host_memory(config)


def test_a_python_without_wheels_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "PYTHONS", ((3, 1),))
    with pytest.raises(UserError, match=r"Python 3\.1\d.* has no wheels .*uv python install 3.12"):
        doctor._verl(compose_run(["cluster=cpu"]))


def test_versions_that_verl_asks_for_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    installed = {**doctor.pinned("gpu", doctor._COMPARED), **doctor.pinned("flash-attn", ["flash-attn"])}
    assert installed.keys() == {*doctor._COMPARED, "flash-attn"}
    monkeypatch.setattr(metadata, "version", lambda name: f"{installed[name]}+cu130")
    config = compose_run(["experiment=math_7b", "cluster=1x8"])
    assert doctor._versions(config).startswith("torch 2.11.0+cu130, vllm 0.24.0")
    installed["flash-attn"] = "2.7.4"
    with pytest.raises(UserError, match="flash-attn 2.7.4.*; verl 0.9.1 asks for 2.8.3: .*pip uninstall"):
        doctor._versions(config)


def test_the_extra_is_what_verl_asks_for() -> None:
    asked = [line.split(";")[0].strip() for line in metadata.requires("verl")]
    for name, version in doctor.pinned("gpu", doctor._COMPARED).items():
        assert f"{name}=={version}" in asked, "a new verl wants others"
    for name, version in doctor.pinned("flash-attn", ["flash-attn"]).items():
        assert f"{name}=={version}" in asked
    for name, version in doctor.pinned("gpu", ["cupy-cuda13x"]).items():
        assert f"{name}=={version}" in asked


def test_bad_overrides_get_one_line(capsys) -> None:
    assert main(["doctor", "experiment=math_8b"]) == 2
    assert "math_7b" in capsys.readouterr().err
