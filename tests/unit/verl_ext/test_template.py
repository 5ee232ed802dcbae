"""Processes that are forks of a template: they run what Python would, and end as it would."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from recipe.flowrl.common.project import PROJECT
from recipe.flowrl.run.launch import WITH_RAY
from verl_ext.processes import runs
from verl_ext.template import Template


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Template]:
    made = Template(tmp_path_factory.mktemp("template"), ["numpy.random", "colorsys"])
    made.wait()
    yield made
    psutil.Process(made.pid).kill()


def run(template: Template, *arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([template.python, *arguments], capture_output=True, text=True, timeout=60, **options)


def test_a_fork_runs_what_python_would_with_the_modules_there(template: Template) -> None:
    code = "import sys; print('colorsys' in sys.modules, sys.argv, __name__, sys.executable); sys.exit(3)"
    ended = run(template, "-c", code, "one", "two words")
    assert (ended.returncode, ended.stderr) == (3, "")
    assert ended.stdout == f"True ['-c', 'one', 'two words'] __main__ {sys.executable}\n"


def test_a_file_finds_its_neighbours_and_no_others(template: Template, tmp_path: Path) -> None:
    (tmp_path / "neighbour.py").write_text("here = 7")
    (tmp_path / "main.py").write_text("import neighbour, sys; print(neighbour.here, sys.argv[1], __file__)")
    ended = run(template, str(tmp_path / "main.py"), "x")
    assert ended.stdout == f"7 x {tmp_path / 'main.py'}\n"


def test_it_has_the_environment_directory_and_files_of_who_asks(template: Template, tmp_path: Path) -> None:
    reading, writing = os.pipe()
    told = "[os.getcwd(), os.environ['ASKED'], 'HOME' in os.environ]"
    code = f"import os, json; os.write({writing}, json.dumps({told}).encode())"
    environment = {"ASKED": "yes", "PATH": os.environ["PATH"]}
    run(template, "-c", code, cwd=tmp_path, env=environment, pass_fds=[writing])
    os.close(writing)
    with os.fdopen(reading) as answer:
        assert json.loads(answer.read()) == [str(tmp_path), "yes", False]  # and the pipe is closed with the fork


def test_forks_draw_numbers_of_their_own(template: Template) -> None:
    code = "import random, numpy; print(random.random(), numpy.random.rand())"
    drawn = [run(template, "-c", code).stdout.split() for _ in range(2)]
    assert not set(drawn[0]) & set(drawn[1])


def test_a_fork_leads_a_process_group_of_its_own(template: Template) -> None:
    """Ray ends the group of a worker that has ended; the other forks aren't to be in it."""
    assert run(template, "-c", "import os; print(os.getpgrp() == os.getpid())").stdout == "True\n"


def test_forks_of_a_template_with_ray_draw_ids_of_their_own(tmp_path: Path) -> None:
    """Of Ray's own generators, one a thread; with all that a run's template imports."""
    template = Template(tmp_path, [], WITH_RAY)
    template.wait()
    draw = "drawn.append(str(ray.ObjectRef.from_random()))"
    code = f"import ray, threading; drawn = []; {draw}; t = threading.Thread(target=lambda: {draw}); "
    code += "t.start(); t.join(); print(*drawn)"
    drawn = [run(template, "-c", code).stdout.split()[-2:] for _ in range(2)]
    psutil.Process(template.pid).kill()
    assert len({*drawn[0], *drawn[1]}) == 4


def test_an_exception_is_told_and_the_status_is_pythons(template: Template) -> None:
    ended = run(template, "-c", "raise ValueError('what is wrong')")
    assert ended.returncode == 1
    assert ended.stderr.endswith("ValueError: what is wrong\n")


def test_a_signal_that_ends_the_fork_ends_who_asked(template: Template) -> None:
    assert run(template, "-c", "import os; os.kill(os.getpid(), 9)").returncode == -signal.SIGKILL
    assert run(template, "-c", "import os; os.abort()").returncode == -signal.SIGABRT


WAITING = """
import os, signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))
print(os.getpid(), flush=True)
time.sleep(60)
"""


def test_a_request_to_end_reaches_the_fork(template: Template) -> None:
    asking = subprocess.Popen([template.python, "-c", WAITING], stdout=subprocess.PIPE, text=True)
    assert asking.stdout is not None and asking.stdout.readline()
    asking.terminate()
    assert asking.wait(30) == 7


def test_a_fork_goes_with_who_asked_for_it(template: Template) -> None:
    asking = subprocess.Popen([template.python, "-c", WAITING], stdout=subprocess.PIPE, text=True)
    assert asking.stdout is not None
    fork = psutil.Process(int(asking.stdout.readline()))
    asking.kill()
    assert psutil.wait_procs([fork], timeout=30)[1] == []
    asking.wait(30)


def test_a_fork_outlives_the_template(tmp_path: Path) -> None:
    made = Template(tmp_path, [])
    made.wait()
    asking = subprocess.Popen([made.python, "-c", WAITING], stdout=subprocess.PIPE, text=True)
    assert asking.stdout is not None
    fork = psutil.Process(int(asking.stdout.readline()))
    psutil.Process(made.pid).kill()
    with pytest.raises(subprocess.TimeoutExpired):
        asking.wait(1)
    assert fork.is_running()
    asking.terminate()
    assert asking.wait(30) == 1
    assert psutil.wait_procs([fork], timeout=30)[1] == []


def test_without_a_template_python_itself_is_run(tmp_path: Path) -> None:
    gone = Template(tmp_path, ["no_such_module"])
    gone.wait()
    ended = run(gone, "-c", "import sys; print('colorsys' in sys.modules)")
    assert (ended.returncode, ended.stdout) == (0, "False\n")


def test_what_the_template_fails_to_import_stops_nobody(tmp_path: Path) -> None:
    made = Template(tmp_path, [], ["no_such_module"])
    made.wait()
    assert run(made, "-c", "print('runs')").stdout == "runs\n"
    assert run(made, "-c", "print('runs')").stdout == "runs\n"


def test_it_ends_with_the_process_that_made_it(tmp_path: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path; from verl_ext.template import Template\n"
        "made = Template(Path(sys.argv[1]), []); made.wait(); print(made.pid, flush=True); os.kill(os.getpid(), 9)"
    )
    maker = subprocess.run([sys.executable, "-c", code, tmp_path], cwd=PROJECT, capture_output=True, text=True)
    deadline = time.monotonic() + 30
    while _there(int(maker.stdout)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _there(int(maker.stdout))


def _there(pid: int) -> bool:
    """As a zombie it has ended: this process may have been made the parent of orphans."""
    try:
        return runs(psutil.Process(pid))
    except psutil.NoSuchProcess:
        return False


def test_modules_that_start_threads_make_no_template(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    body = "import threading, time\nthreading.Thread(target=time.sleep, args=(60,), daemon=True).start()"
    (tmp_path / "threaded.py").write_text(body)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    Template(tmp_path, ["threaded"]).wait()
    assert "no template for the run's processes: importing threaded starts 1 threads" in capfd.readouterr().err


def test_modules_that_import_ray_make_no_template(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    Template(tmp_path, ["ray"]).wait()
    assert "importing ray imports Ray" in capfd.readouterr().err


def test_some_modules_are_imported_in_the_environment_of_who_asks_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "looks.py").write_text("import os; seen = os.environ['ASKED']; os.environ['ADDED'] = 'by an import'")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    made = Template(tmp_path, [], ["looks"])
    made.wait()
    code = "import sys, os; print(sys.modules['looks'].seen, os.environ['ADDED'], sorted({'V1', 'V2'} & {*os.environ}))"
    told = [run(made, "-c", code, env={**os.environ, "ASKED": name, name: ""}).stdout for name in ("V1", "V2")]
    psutil.Process(made.pid).kill()
    assert told == ["V1 by an import ['V1']\n", "V1 by an import ['V2']\n"]
