"""Values that go into a line format, places that aren't what they seldom aren't, and files that others made."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from recipe.flowrl.common.errors import UserError
from recipe.flowrl.common.files import alone_in
from recipe.flowrl.common.project import PROJECT
from recipe.flowrl.common.terminal import output_into, printable
from recipe.flowrl.preflight.values import RULES
from recipe.flowrl.reporting.events import EventWriter
from recipe.flowrl.reporting.observer import RunRecorder
from recipe.flowrl.reporting.run_records import load_run
from recipe.flowrl.run.run_dir import recorded_launch, save_config
from recipe.flowrl.run.status import status
from recipe.flowrl.run.submit import _DIRECTIVE, directives, render
from verl_ext.files import replacing, write_text

SITE = {"SITE_ACCOUNT": "", "SITE_PARTITION": "", "SITE_SBATCH": ""}


def config(**trainer: str) -> OmegaConf:
    place = {"project_name": "p", "experiment_name": "e", "nnodes": 1, "n_gpus_per_node": 8, "device": "cuda"}
    slurm = {"time": "1:00:00", "notice_s": 100}
    made = {"trainer": place | trainer, "slurm": slurm, "run_dir": "out", "ray_kwargs": {"ray_init": {}}}
    return OmegaConf.create(made)


def arguments(script: str) -> list[str]:
    """The options that sbatch would take: it reads quotes as a shell does."""
    lines = [line for line in script.splitlines() if line.startswith(_DIRECTIVE)]
    return [word for line in lines for word in shlex.split(line.removeprefix(_DIRECTIVE))]


@pytest.mark.parametrize(
    "place", ["my runs/a b", 'quo"te', "back\\slash", "hash # tag", "apo'strophe", "dollar$(id)`id`"]
)
def test_a_job_script_keeps_each_option_whole(place: str) -> None:
    made = config()
    made.run_dir = place
    site = SITE | {"SITE_SBATCH": "--constraint='a b' --comment=\"it's\" --qos=x"}
    options = arguments(render(made, ["a=b c", "d=\ne"], site))
    assert options == directives(made, site)
    assert f"--output={PROJECT}/{place}/slurm-%j.out" in options and "--constraint=a b" in options


@pytest.mark.parametrize("end", ["\n", "\r", "\x85", "\u2028", "\x1b[31m", "\x00", "\x0b"])
@pytest.mark.parametrize("key", ["run_dir", "experiment_name", "SITE_ACCOUNT"])
def test_a_line_end_is_refused_by_name(key: str, end: str) -> None:
    made, site = config(), dict(SITE)
    text = f"a{end}#SBATCH --wrap=id"
    if key == "run_dir":
        made.run_dir = text
    elif key in SITE:
        site[key] = text
    else:
        made.trainer[key] = text
    with pytest.raises(UserError, match="line end or control character"):
        render(made, [], site)


def test_percent_signs_stay_in_the_output_path() -> None:
    made = config()
    made.run_dir = "100%j"
    assert f"--output={PROJECT}/100%%j/slurm-%j.out" in directives(made, SITE)


@pytest.mark.parametrize(
    "value", ["", " ", None, 3, "a\nb", "a\x1bb", "n" * 300, "a/" * 2000, "é" * 101, ["x"], "\u202ex"]
)
def test_no_run_goes_to_such_a_place(value: object) -> None:
    assert not RULES["run_dir"].accepts(value) and not RULES["trainer.experiment_name"].accepts(value)


@pytest.mark.parametrize("value", ["outputs/a/b", "/tmp/x y", "müller/ü", "n" * 200])
def test_a_run_goes_to_such_a_place(value: str) -> None:
    assert RULES["run_dir"].accepts(value)


@pytest.mark.parametrize(
    "environment", [{"FLOWRL_CACHE": "/tmp/c"}, {}, {"LANG": "C", "LC_ALL": "C", "PYTHONUTF8": "0"}]
)
def test_a_run_is_composed_without_a_home(environment: dict[str, str]) -> None:
    code = (
        "from recipe.flowrl.preflight.compose import compose_run\n"
        "from recipe.flowrl.common.cache import cache_directory\n"
        "print(compose_run(['experiment=countdown_cpu']).cache_dir, cache_directory())"
    )
    path = {"PATH": os.environ["PATH"], "PYTHONPATH": str(PROJECT)}
    done = subprocess.run([sys.executable, "-c", code], env=path | environment, capture_output=True, text=True, cwd="/")
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.split()
    assert first == second == environment.get("FLOWRL_CACHE", first)


@pytest.mark.parametrize("kind", ["lock", "log", "events", "metrics"])
def test_links_are_not_followed(kind: str, tmp_path: Path) -> None:
    target, run_dir = tmp_path / "precious", tmp_path / "run"
    target.write_text("content")
    run_dir.mkdir()
    link = run_dir / {"lock": ".lock", "log": "log", "events": "events.jsonl", "metrics": "metrics.jsonl"}[kind]
    link.symlink_to(target)

    def write() -> None:
        if kind == "lock":
            with alone_in(run_dir):
                pass
        elif kind == "log":
            with output_into(link):
                pass
        elif kind == "events":
            EventWriter(link).write("message", text="x")
        else:
            RunRecorder(run_dir).log({"a": 1.0}, 1)

    with pytest.raises(OSError, match="symbolic link"):
        write()
    assert target.read_text() == "content"


def test_a_replaced_file_is_a_new_one(tmp_path: Path) -> None:
    """Neither a link under its name nor one under a name that could be foreseen is written through."""
    target, link = tmp_path / "precious", tmp_path / "file"
    target.write_text("content")
    link.symlink_to(target)
    (tmp_path / f".file.{os.getpid()}").symlink_to(target)
    write_text(link, "new")
    assert target.read_text() == "content" and link.read_text() == "new" and not link.is_symlink()
    with replacing(link) as one, replacing(link) as other:
        assert one != other, "two containers may have the same process id"


def test_files_with_secrets_are_private_and_masked(tmp_path: Path) -> None:
    made = OmegaConf.create({"env_vars": {"WANDB_API_KEY": "hunter2"}, "urls": ["https://u:hunter2@host"], "beta": 1.5})
    save_config(made, tmp_path)
    with output_into(tmp_path / "log"):
        pass
    assert "hunter2" not in (tmp_path / "config.yaml").read_text()
    assert OmegaConf.load(tmp_path / "config.yaml").beta == 1.5 and made.env_vars.WANDB_API_KEY == "hunter2"
    assert {(tmp_path / name).stat().st_mode & 0o777 for name in ("config.yaml", "log")} == {0o600}


def test_a_log_is_masked_as_it_is_written(tmp_path: Path) -> None:
    """Also what a process below writes, past Python's own streams."""
    code = (
        "import os, pathlib, subprocess; from recipe.flowrl.common import secrets, terminal\n"
        "secrets.remember({'reward': {'password': 'hunter2'}})\n"
        f"with terminal.output_into(pathlib.Path({str(tmp_path / 'log')!r})):\n"
        "    print('own hunter2', flush=True); subprocess.run(['echo', 'other hunter2'])\n"
        "print('terminal')"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, timeout=60)
    assert done.stdout == "terminal\n", done.stderr
    assert (tmp_path / "log").read_text() == "own ***\nother ***\n"


@pytest.mark.parametrize(
    "content", ["", "{", '{"started": 1', "[]", "null", "3", '{"attempts": "x", "started": []}', "\ud800"]
)
def test_a_broken_record_is_no_end_of_a_run(content: str, tmp_path: Path) -> None:
    (tmp_path / "run.json").write_bytes(content.encode(errors="surrogatepass"))
    made = config(resume_mode="disable")
    with recorded_launch(made, tmp_path, resumed=False):
        pass
    assert "finished" in (tmp_path / "run.json").read_text()


def test_a_metrics_line_cut_short_loses_nothing_else(tmp_path: Path) -> None:
    recorder = RunRecorder(tmp_path)
    recorder.log({"critic/score/mean": 0.1}, 1)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "critic/sc')
    RunRecorder(tmp_path).log({"critic/score/mean": 0.3}, 2)
    assert load_run(tmp_path).metrics["critic/score/mean"].steps.tolist() == [1, 2]


def test_nothing_reaches_the_terminal_as_a_command(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text('{"experiment": "a\\u001b]0;x\\u0007\\nstate finished", "algo": "\\u202eb"}')
    shown = status(tmp_path, 0.0)
    assert printable(shown) == shown and len(shown.splitlines()) == 10
