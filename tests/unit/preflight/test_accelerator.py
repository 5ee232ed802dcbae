"""What a GPU run takes of what is installed, with stand-ins for flash-attn and nvidia-smi."""

from pathlib import Path

import pytest
from omegaconf import DictConfig, OmegaConf

from recipe.flowrl.common.errors import UserError
from recipe.flowrl.preflight import accelerator
from recipe.flowrl.preflight.compose import compose_run

ACTOR, CRITIC = (
    f"{model}.override_config.attn_implementation" for model in ("actor_rollout_ref.model", "critic.model")
)
WRONG_ABI = "raise ImportError('flash_attn_2_cuda.so: undefined symbol: _ZN3c104cuda9SetDeviceEab')"


@pytest.fixture(autouse=True)
def nothing_remembered() -> None:
    accelerator.flash_attention_fault.cache_clear()


def gpu_run(*overrides: str) -> DictConfig:
    return compose_run(["experiment=math_7b", "cluster=1x8", *overrides])


def install_flash_attn(directory: Path, monkeypatch: pytest.MonkeyPatch, interface: str = "") -> None:
    """A package of the name, in which only what is imported is there."""
    for package in ("flash_attn", "flash_attn/ops", "flash_attn/ops/triton"):
        (directory / package).mkdir()
        (directory / package / "__init__.py").touch()
    (directory / "flash_attn" / "flash_attn_interface.py").write_text(interface)
    for module in ("bert_padding", "ops/triton/cross_entropy"):
        (directory / "flash_attn" / f"{module}.py").touch()
    monkeypatch.syspath_prepend(directory)
    monkeypatch.setenv("PYTHONPATH", str(directory))


def test_without_flash_attention_models_take_sdpa_and_the_run_says_so() -> None:
    config = gpu_run("algo=ppo")
    chosen, said = accelerator.choose_attention(config)
    assert chosen == {ACTOR: "sdpa", CRITIC: "sdpa"}
    assert len(said) == 1 and "flash-attn isn't installed" in said[0] and "costs time" in said[0]
    accelerator.settle_attention(config)
    assert OmegaConf.select(config, ACTOR) == OmegaConf.select(config, CRITIC) == "sdpa"


def test_flash_attention_is_taken_where_it_can_be_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install_flash_attn(tmp_path, monkeypatch)
    chosen, said = accelerator.choose_attention(gpu_run())
    assert chosen == {ACTOR: "flash_attention_2", CRITIC: "flash_attention_2"} and not said


def test_one_of_the_wrong_abi_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install_flash_attn(tmp_path, monkeypatch, WRONG_ABI)
    chosen, said = accelerator.choose_attention(gpu_run())
    assert chosen[ACTOR] == "sdpa" and "can't be imported (ImportError: flash_attn_2_cuda.so: undefined" in said[0]
    with pytest.raises(UserError, match=f"{ACTOR}=flash_attention_2: flash-attn is installed but can't .*docs/gpus.md"):
        accelerator.choose_attention(gpu_run(f"+{ACTOR}=flash_attention_2"))


def test_one_that_ends_the_process_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install_flash_attn(tmp_path, monkeypatch, "import os\nos.abort()")
    assert "(ended by signal 6" in accelerator.choose_attention(gpu_run())[1][0]


def test_one_that_hangs_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert accelerator.import_fault("import time; time.sleep(60)", limit_s=0.5) == "takes more than 0.5 s"


def test_what_is_configured_stays() -> None:
    chosen, said = accelerator.choose_attention(gpu_run(f"+{ACTOR}=eager"))
    assert chosen == {CRITIC: "sdpa"} and not said


@pytest.mark.parametrize(
    ("section", "attention"), [("actor_rollout_ref.actor", None), ("critic", None), ("actor_rollout_ref.actor", "sdpa")]
)
def test_sequence_parallelism_without_flash_attention_is_refused(section: str, attention: str | None) -> None:
    """verl's all-to-all stands in flash attention's function alone: with sdpa each rank would see its own part."""
    option = f"{section}.ulysses_sequence_parallel_size"
    given = [f"+{ACTOR}={attention}"] if attention else []
    with pytest.raises(UserError, match=f"{option}=2: sequence parallelism needs flash attention.*set it to 1"):
        accelerator.choose_attention(gpu_run(f"{option}=2", *given))


def test_a_cpu_run_keeps_its_own() -> None:
    config = compose_run(["experiment=countdown_cpu"])
    accelerator.settle_attention(config)
    assert OmegaConf.select(config, ACTOR) == "sdpa"


def nvidia_smi(directory: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """A stand-in of that name on the path."""
    program = directory / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{directory}:/usr/bin:/bin")


@pytest.mark.parametrize("version", ["580.65.06", "595.12"])
def test_a_driver_of_cuda_13_passes(version: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nvidia_smi(tmp_path, monkeypatch, f"echo {version}; echo {version}")
    assert accelerator.check_driver() == version


def test_an_old_driver_is_refused_unless_cuda_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nvidia_smi(tmp_path, monkeypatch, "echo 550.54.15")
    monkeypatch.setattr(accelerator, "import_fault", lambda code: "RuntimeError: the driver is too old")
    with pytest.raises(UserError, match="driver 550.54.15 is too old for CUDA 13.0, which needs 580"):
        accelerator.check_driver()
    monkeypatch.setattr(accelerator, "import_fault", lambda code: None)  # a compatibility package
    assert accelerator.check_driver() == "550.54.15"


@pytest.mark.parametrize(
    "script", ["echo 'NVIDIA-SMI has failed because it couldn\\'t talk to the driver' >&2; exit 9", "echo No devices"]
)
def test_a_driver_that_does_not_work_is_named(script: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nvidia_smi(tmp_path, monkeypatch, script)
    with pytest.raises(UserError, match="^nvidia-smi: .*: the driver doesn't work here$"):
        accelerator.check_driver()


def test_no_driver_is_left_to_the_check_for_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert accelerator.check_driver() is None
