"""``submit``: the script it renders, and what it refuses."""

import os
import shlex
import subprocess
from pathlib import Path

import pytest

from recipe.flowrl.__main__ import main
from recipe.flowrl.common.project import PROJECT
from recipe.flowrl.preflight.schema import JOB_END_S
from recipe.flowrl.run import submit

CPU = ["experiment=countdown_cpu", "trainer.nnodes=2"]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache and a site of the test's own."""
    monkeypatch.setenv("FLOWRL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(submit, "SITE", tmp_path / "site.env")


def dry_run(capsys: pytest.CaptureFixture, *overrides: str) -> str:
    assert main(["submit", "show=true", *overrides]) == 0
    return capsys.readouterr().out


def directives(script: str) -> list[str]:
    """As sbatch reads them."""
    lines = [line.removeprefix("#SBATCH ") for line in script.splitlines() if line.startswith("#SBATCH ")]
    return [" ".join(shlex.split(line)) for line in lines]


def test_nodes_and_time_come_from_the_configuration(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "site.env").write_text("SITE_ACCOUNT=alpha\nSITE_SBATCH=\"--qos=normal --constraint='a b'\"\n")
    overrides = [
        *CPU,
        "slurm.time=02:30:00",
        "slurm.notice_s=90",
        f"run_dir={tmp_path}/run",
        "trainer.logger=[console]",
    ]
    script = dry_run(capsys, *overrides)
    given = directives(script)
    assert {"--nodes=2", "--time=02:30:00", "--signal=B:USR1@90", "--requeue", "--account=alpha"} <= set(given)
    assert {"--qos=normal", "--constraint=a b", f"--output={tmp_path}/run/slurm-%j.out"} <= set(given)
    assert not [option for option in given if option.startswith(("--gpus", "--partition"))]
    assert "export RAY_CPUS_PER_NODE=16\n" in script and "export RAY_GPUS_PER_NODE=1\n" in script
    assert subprocess.run(["bash", "-n"], input=script, text=True).returncode == 0
    line = next(line for line in script.splitlines() if line.startswith("set -- "))
    shown = subprocess.run(["bash", "-c", f'{line}; printf "%s\\n" "$@"'], capture_output=True, text=True)
    assert shown.stdout.splitlines() == overrides, "quoted as given"
    assert not (tmp_path / "run").exists()


def test_gpus_are_asked_for(capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    from test_preflight import row, write_model, write_parquet

    files = [
        f"data.{kind}_files={write_parquet(tmp_path / f'{kind}.parquet', [row()] * 2048)}" for kind in ("train", "val")
    ]
    overrides = [*files, f"actor_rollout_ref.model.path={write_model(tmp_path / 'model', num_attention_heads=4)}"]
    micro = [
        f"actor_rollout_ref.{part}_micro_batch_size_per_gpu=1"
        for part in ("actor.ppo", "ref.log_prob", "rollout.log_prob")
    ]
    script = dry_run(capsys, *overrides, *micro, "trainer.nnodes=4", "trainer.n_gpus_per_node=8")
    assert {"--nodes=4", "--gpus-per-node=8"} <= set(directives(script))
    assert "export RAY_GPUS_PER_NODE=8\n" in script and "RAY_CPUS_PER_NODE" not in script.split("set --")[0]


def test_the_time_that_a_job_takes_to_end_is_that_of_the_script() -> None:
    script = PROJECT / "slurm" / "job.sh"
    assert f" TEARDOWN_S={JOB_END_S} " in script.read_text()


@pytest.mark.parametrize(
    ("overrides", "part"),
    [
        ([*CPU, "trainer.nnodez=2"], "did you mean trainer.nnodes?"),
        ([*CPU, "trainer.nnodes=0"], "trainer.nnodes: got 0"),
        ([*CPU, "slurm.time=1d"], "slurm.time: got '1d' (str)"),
        ([*CPU, "slurm.time=00:05:00"], "slurm.notice_s=600 isn't less than slurm.time=00:05:00"),
        ([*CPU, "data.train_files=/nonexistent.parquet"], "/nonexistent.parquet doesn't exist"),
        ([*CPU, "--dryrun"], "--dryrun: options are written KEY=VALUE"),
    ],
)
def test_what_the_run_would_refuse_is_refused(overrides: list[str], part: str, capsys: pytest.CaptureFixture) -> None:
    assert main(["submit", *overrides]) == 2
    said = capsys.readouterr()
    assert part in said.err and said.err.count("\n") <= 2 and not said.out


@pytest.fixture
def math_data(tmp_path: Path) -> list[str]:
    """Overrides that give ``experiment=math_*`` its data; the model is a name on the hub."""
    from test_preflight import row, write_parquet

    files = [write_parquet(tmp_path / f"{kind}.parquet", [row()] * 512) for kind in ("train", "val")]
    return [f"data.train_files={files[0]}", f"data.val_files={files[1]}"]


@pytest.fixture
def online(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a hub's name passes; nothing is fetched before the job runs."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")


def test_a_cluster_on_which_the_run_does_not_fit_is_refused(
    math_data: list[str], online: None, capsys: pytest.CaptureFixture
) -> None:
    run = ["submit", "show=true", *math_data, "experiment=math_32b", "cluster=1x8"]
    assert main(run) == 2
    said = capsys.readouterr()
    assert not said.out and said.err.count("\n") <= 2
    for part in ("doesn't fit on 1 x 8 h100_80gb", "GB of 80", "use more GPUs", "slurm.gpu=null submits anyway"):
        assert part in said.err
    assert main([*run, "slurm.gpu=null"]) == 0
    assert main([*run, "slurm.gpu=h100"]) == 2
    assert "slurm.gpu: got 'h100'" in capsys.readouterr().err


def test_a_cluster_on_which_it_fits_is_not(math_data: list[str], online: None, capsys: pytest.CaptureFixture) -> None:
    script = dry_run(capsys, *math_data, "experiment=math_32b", "cluster=4x8")
    assert {"--nodes=4", "--gpus-per-node=8"} <= set(directives(script))


def test_a_model_of_unknown_size_is_a_warning(
    math_data: list[str], online: None, capsys: pytest.CaptureFixture
) -> None:
    overrides = [*math_data, "experiment=math_7b", "cluster=1x8", "actor_rollout_ref.model.path=some/model"]
    assert main(["submit", "show=true", *overrides]) == 0
    assert "not checked whether the run fits on its GPUs: actor_rollout_ref.model.path" in capsys.readouterr().err


def test_a_site_file_that_is_no_shell(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "site.env").write_text("SITE_ACCOUNT=(\n")
    assert main(["submit", "show=true", *CPU]) == 2
    assert f"error: {tmp_path}/site.env: bash can't read it" in capsys.readouterr().err


def test_the_example_is_a_site_file() -> None:
    example = submit.PROJECT / "slurm" / "site.env.example"
    assert submit.read_site(example) == dict.fromkeys(("SITE_ACCOUNT", "SITE_PARTITION", "SITE_SBATCH"), "")


@pytest.fixture
def sbatch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stand-in for ``sbatch``; the cluster's own is in tests/slurm."""
    program = tmp_path / "bin" / "sbatch"
    program.parent.mkdir()
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    return program


def test_submitting(tmp_path: Path, sbatch: Path, capsys: pytest.CaptureFixture) -> None:
    sbatch.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/called\necho 4711\n')
    sbatch.chmod(0o755)
    assert main(["submit", *CPU, f"run_dir={tmp_path}/run"]) == 0
    assert capsys.readouterr().out == f"job 4711; python -m recipe.flowrl status {tmp_path}/run\n"
    assert (tmp_path / "called").read_text() == f"--parsable {tmp_path}/run/slurm.sbatch\n"
    assert "--nodes=2" in directives((tmp_path / "run" / "slurm.sbatch").read_text())


def test_sbatch_refuses(tmp_path: Path, sbatch: Path, capsys: pytest.CaptureFixture) -> None:
    sbatch.write_text("#!/bin/sh\necho invalid partition >&2\nexit 1\n")
    sbatch.chmod(0o755)
    assert main(["submit", *CPU, f"run_dir={tmp_path}/run"]) == 2
    assert "sbatch refused" in capsys.readouterr().err


def test_no_sbatch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setattr(submit.shutil, "which", lambda program: None)
    assert main(["submit", *CPU, f"run_dir={tmp_path}/run"]) == 2
    assert "sbatch not found" in capsys.readouterr().err
