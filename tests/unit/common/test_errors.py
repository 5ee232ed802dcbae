"""``errors.py``: what a person sees of a failure, and the exit status."""

import subprocess
import sys
from pathlib import Path

import pytest
import ray
from hydra.errors import InstantiationException

from recipe.flowrl.common.errors import Terminated, UserError, exit_status_of, root_cause, traceback_in
from recipe.flowrl.config import FlowRLConfig, FlowRLConfigError
from verl_ext.faults import NonFiniteError, ProcessDied


@pytest.fixture(autouse=True)
def _no_debug(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FLOWRL_DEBUG", raising=False)


def _raised(error: BaseException, cause: BaseException | None = None) -> BaseException:
    try:
        raise error from cause
    except BaseException as caught:
        return caught


def test_bad_input_is_its_message_alone(capsys: pytest.CaptureFixture) -> None:
    assert exit_status_of(_raised(UserError("a=1: wrong\nset it to 2"), ValueError("Hydra's many lines"))) == 2
    assert capsys.readouterr().err == "error: a=1: wrong\nset it to 2\n"


def test_a_refused_flowrl_option_is_bad_input(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(FlowRLConfigError) as refused:
        FlowRLConfig(beta=-1)
    assert exit_status_of(refused.value) == 2
    assert capsys.readouterr().err == "error: flowrl.beta: got -1 (int); allowed: a finite number > 0\n"


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (KeyboardInterrupt(), 130),
        (Terminated(), 143),
        (SystemExit(), 0),
        (SystemExit(7), 7),
        (SystemExit("a message"), 1),
        (RuntimeError("broken"), 1),
    ],
)
def test_exit_status(error: BaseException, status: int) -> None:
    assert exit_status_of(_raised(error)) == status


def test_an_exit_that_is_a_message_prints_it(capsys: pytest.CaptureFixture) -> None:
    exit_status_of(SystemExit("a message"))
    assert capsys.readouterr().err == "a message\n"


def test_a_failure_is_its_root_cause_in_one_line(capsys: pytest.CaptureFixture) -> None:
    error = _raised(RuntimeError("the worker failed"), OSError("disk\n  full"))
    assert exit_status_of(error) == 1
    assert capsys.readouterr().err == "error: OSError: disk full\nFLOWRL_DEBUG=1 shows the traceback\n"


def test_an_option_that_verl_does_not_have(capsys: pytest.CaptureFixture) -> None:
    """``+actor_rollout_ref.actor.policy_loss.x=1`` as Hydra reports it while verl builds its dataclass."""
    cause = TypeError("PolicyLossConfig.__init__() got an unexpected keyword argument 'x'")
    exit_status_of(_raised(InstantiationException("Error in call to target\nfull_key: policy_loss"), cause))
    assert capsys.readouterr().err.startswith("error: TypeError: PolicyLossConfig.__init__() got an unexpected keyword")


def test_a_long_message_is_cut(capsys: pytest.CaptureFixture) -> None:
    exit_status_of(RuntimeError("x" * 10_000))
    first, second = capsys.readouterr().err.splitlines()
    assert len(first) < 450 and first.endswith("...")
    assert "FLOWRL_DEBUG=1" in second


def _from_ray(cause: Exception) -> Exception:
    """The error that ``ray.get`` raises for ``cause`` in a worker that failed on another worker."""
    inner = ray.exceptions.RayTaskError("work", "Traceback: many lines", cause, pid=1, ip="127.0.0.1", proctitle="w")
    inner = inner.as_instanceof_cause()
    outer = ray.exceptions.RayTaskError("run", "Traceback: more lines", inner, pid=2, ip="127.0.0.1", proctitle="r")
    return outer.as_instanceof_cause()


def test_the_cause_in_a_ray_worker(capsys: pytest.CaptureFixture) -> None:
    assert exit_status_of(_from_ray(KeyError("weights"))) == 1
    assert capsys.readouterr().err.splitlines()[0] == "error: KeyError: 'weights'"


def test_bad_input_found_in_a_ray_worker(capsys: pytest.CaptureFixture) -> None:
    assert exit_status_of(_from_ray(UserError("a=1: wrong"))) == 2
    assert capsys.readouterr().err == "error: a=1: wrong\n"


def test_a_fault_is_its_message_also_from_a_ray_worker(capsys: pytest.CaptureFixture) -> None:
    """Whatever it was raised from."""
    for error in (_raised(ProcessDied("a worker died"), KeyboardInterrupt()), _from_ray(NonFiniteError("not finite"))):
        assert exit_status_of(error) == 1
    first, _, second, _ = capsys.readouterr().err.splitlines()
    assert (first, second) == ("error: a worker died", "error: not finite")


def test_bad_input_hides_what_it_was_raised_from() -> None:
    error = _raised(UserError("short"), ValueError("long"))
    assert root_cause(_raised(RuntimeError(), error)) is error


@pytest.mark.parametrize("error", [UserError("wrong"), RuntimeError("broken"), KeyboardInterrupt()])
def test_debug_shows_the_traceback(
    error: BaseException, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setenv("FLOWRL_DEBUG", "1")
    exit_status_of(_raised(error))
    assert "Traceback (most recent call last)" in capsys.readouterr().err


def logged(error: BaseException, log: Path) -> BaseException:
    """What comes out of a block with ``error`` in it."""
    with pytest.raises(BaseException) as raised, traceback_in(log):
        raise error
    return raised.value


@pytest.mark.parametrize(
    ("error", "status"), [(UserError("wrong"), 2), (KeyboardInterrupt(), 130), (Terminated(), 143), (SystemExit(3), 3)]
)
def test_what_is_no_failure_comes_out_of_the_log_as_it_went_in(
    error: BaseException, status: int, tmp_path: Path
) -> None:
    assert logged(error, tmp_path / "launch_1.log") is error and exit_status_of(error) == status
    assert type(error).__name__ in (tmp_path / "launch_1.log").read_text()


def test_the_log_gets_the_traceback(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    error, log = _raised(RuntimeError("broken"), OSError("disk full")), tmp_path / "launch_1.log"
    log.write_text("before\n")
    assert exit_status_of(logged(error, log)) == 1
    written = log.read_text()
    assert written.startswith("before\nTraceback") or written.startswith("before\nOSError")
    assert "RuntimeError: broken" in written and "in _raised" in written
    printed = capsys.readouterr().err
    assert printed == f"error: OSError: disk full\n{log} has the traceback\n"


def test_a_log_that_cannot_be_written(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    error = RuntimeError("broken")
    assert exit_status_of(logged(error, tmp_path / "missing" / "launch_1.log")) == 1
    assert capsys.readouterr().err == "error: RuntimeError: broken\nFLOWRL_DEBUG=1 shows the traceback\n"


def test_it_loads_neither_ray_nor_torch() -> None:
    program = (
        "import sys; from recipe.flowrl.common.errors import exit_status_of; exit_status_of(ValueError());"
        "sys.exit(bool({'ray', 'torch', 'verl', 'hydra'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", program], capture_output=True).returncode == 0
