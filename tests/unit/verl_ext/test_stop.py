"""A request to stop: when it holds, and what the trainer does about it."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from checkpoint_directories import make_checkpoint
from omegaconf import OmegaConf

from recipe.flowrl.common.errors import STOPPED, exit_status_of
from verl_ext import stop
from verl_ext.checkpoint_files import tracked_step
from verl_ext.stop import StopRequest, StopRequested
from verl_ext.supervision import ENDING, FAILING


def test_no_request() -> None:
    request = StopRequest()
    request.step_begins()
    assert request.reason() is None
    request.honour()


def test_a_file_asks_and_is_removed(tmp_path: Path) -> None:
    request = StopRequest(tmp_path / "stop")
    assert request.reason() is None
    (tmp_path / "stop").touch()
    assert str(tmp_path / "stop") in request.reason()
    request.honour()
    assert request.reason() is None


def test_a_step_that_does_not_fit_before_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(stop, "time", SimpleNamespace(time=lambda: clock.now, monotonic=lambda: clock.now))
    request = StopRequest(deadline=1100.0)
    assert request.reason() is None, "no step to judge by"
    request.step_begins()
    clock.now = 1040.0  # a long first step
    assert request.reason() is None
    request.step_begins()
    clock.now = 1055.0
    assert request.reason() is None, "45 s are left, the longest step took 40"
    request.step_begins()
    clock.now = 1065.0
    assert request.reason() == "a step of 40 s doesn't fit into the 35 s before the deadline"


class Base:
    """As much of verl's trainer as the hooks meet, with its loop's order of calls."""

    def __init__(self, config: Any) -> None:
        self.use_reference_policy, self.global_steps, self.total_training_steps = False, 0, 4
        self.config, self.checkpoint_callback = config, SimpleNamespace(on_save=lambda **told: None)
        self.saved: list[int] = []
        self.logged: list[int] = []

    def on_step_begin(self) -> None: ...

    def on_step_end(self) -> None: ...

    def _save_checkpoint(self) -> None:
        make_checkpoint(Path(self.config.trainer.default_local_dir), self.global_steps)
        self.saved.append(self.global_steps)

    def _shutdown_dump_executor(self) -> None:
        self.logged.append(-1)

    def fit(self, save_freq: int) -> None:
        for step in range(1, self.total_training_steps + 1):
            self.global_steps = step
            self.on_step_begin()
            if self.global_steps % save_freq == 0:
                self._save_checkpoint()
            self.on_step_end()
            self.logged.append(self.global_steps)


@pytest.fixture
def trainer(tmp_path: Path) -> Any:
    from verl_ext.trainer import ObservedTrainerMixin

    algorithm = {"use_kl_in_reward": False, "adv_estimator": "grpo"}
    own = {"default_local_dir": str(tmp_path / "checkpoints"), "v1": {"trainer_mode": "sync"}}
    config = OmegaConf.create({"trainer": own, "algorithm": algorithm})
    made = type("Trainer", (ObservedTrainerMixin, Base), {})(config)
    made.observer = SimpleNamespace(phase=lambda name: None)
    made.stop_request = StopRequest(tmp_path / "stop")
    return made


@pytest.mark.parametrize(("save_freq", "saved"), [(2, [2]), (3, [2])])
def test_the_step_is_finished_saved_once_and_logged(
    trainer: Any, tmp_path: Path, save_freq: int, saved: list[int], capsys: pytest.CaptureFixture
) -> None:
    original = trainer.on_step_begin
    trainer.on_step_begin = lambda: (original(), trainer.global_steps == 2 and (tmp_path / "stop").touch())
    with pytest.raises(StopRequested, match="stopped after step 2, which is saved") as stopped:
        trainer.fit(save_freq)
    assert trainer.saved == saved
    assert tracked_step(tmp_path / "checkpoints") == 2, "it waited until the checkpoint was in place"
    assert trainer.logged == [1, 2, -1], "and the samples are written out"
    assert not (tmp_path / "stop").exists()
    assert exit_status_of(stopped.value) == STOPPED == 75
    assert capsys.readouterr().err.startswith("stopped after step 2")


def test_a_request_during_the_last_step_changes_nothing(trainer: Any, tmp_path: Path) -> None:
    trainer.total_training_steps = 1
    (tmp_path / "stop").touch()
    trainer.fit(save_freq=5)
    assert trainer.saved == [] and trainer.logged == [1]


@pytest.mark.parametrize(
    ("error", "last"), [(None, ENDING), (StopRequested("asked to"), ENDING), (ValueError("broken"), FAILING)]
)
def test_a_run_says_that_it_ends(trainer: Any, error: Exception | None, last: str) -> None:
    """Before verl ends the first process, so that it isn't taken for dead."""
    phases: list[str] = []
    trainer.observer = SimpleNamespace(phase=phases.append)
    trainer.total_training_steps = 1

    def fail() -> None:
        raise error

    if error is not None:
        trainer.on_step_end = fail
        with pytest.raises(type(error)):
            trainer.fit(save_freq=5)
    else:
        trainer.fit(save_freq=5)
    assert phases[-1] == last
