"""A model that can't be trained is refused by each command that looks at it, in one line, before anything starts."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from published_configs import PUBLISHED, REFUSED

from recipe.flowrl.common.errors import UserError
from recipe.flowrl.models.files import architecture_of
from recipe.flowrl.plan.text import report
from recipe.flowrl.preflight.compose import compose_run, compose_unresolved
from recipe.flowrl.preflight.model_files import check_model
from recipe.flowrl.rehearsal import rehearsal_and_account
from recipe.flowrl.run.doctor import RUN, examine

MODEL = "actor_rollout_ref.model.path"
RUN_ON_GPUS = ["experiment=math_7b", "cluster=1x8"]


@pytest.fixture(params=["gemma-3-4b-it", "Qwen2.5-VL-7B", "Qwen3.5-4B", "gpt-oss-20b", "flan-t5-base"])
def model(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, str]:
    """Override and part of the message."""
    architecture, seen = REFUSED[request.param]
    (tmp_path / "config.json").write_text(json.dumps(architecture))
    return f"{MODEL}={tmp_path}", seen


COMMANDS: dict[str, Callable[[str], Any]] = {
    "check": lambda override: check_model(compose_run([*RUN_ON_GPUS, override])),
    "plan": lambda override: report(compose_run([*RUN_ON_GPUS, override]), "h100_80gb"),
    "rehearsal": lambda override: rehearsal_and_account(compose_unresolved([*RUN_ON_GPUS, "dryrun=true", override])),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_it_is_refused_by_name(command: str, model: tuple[str, str]) -> None:
    override, seen = model
    with pytest.raises(UserError) as refused:
        COMMANDS[command](override)
    message = str(refused.value)
    assert message.startswith(MODEL) and seen in message and "\n" not in message


def test_doctor_reports_it(model: tuple[str, str]) -> None:
    override, seen = model
    checks = [check for check in RUN if check.name in ("model", "paths")]
    lines, well = examine(compose_run([*RUN_ON_GPUS, override]), checks)
    assert not well and seen in lines[0] and lines[0].startswith("FAILED")


def test_doctor_says_which_paths_are_left(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(PUBLISHED["granite-3.3-8b"]))
    (check,) = (check for check in RUN if check.name == "paths")
    lines, _ = examine(compose_run([*RUN_ON_GPUS, f"{MODEL}={tmp_path}"]), [check])
    assert "use_fused_kernels=False: of granite" in lines[0]


def test_the_plan_is_of_the_paths_that_the_run_takes(tmp_path: Path) -> None:
    """Without fused kernels the logits take more memory."""
    totals = {}
    for scaling in (1.0, 16.0):
        (tmp_path / "config.json").write_text(json.dumps({**PUBLISHED["granite-3.3-8b"], "logits_scaling": scaling}))
        lines, _ = report(compose_run([*RUN_ON_GPUS, f"{MODEL}={tmp_path}"]), "h100_80gb")
        totals[scaling] = next(line for line in lines if line.startswith("update:"))
        assert any("use_fused_kernels=False" in line for line in lines) == (scaling == 16.0)
    assert totals[1.0] != totals[16.0]


def test_of_a_model_on_the_hub_the_configuration_is_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub is replaced: no test may need one."""
    (tmp_path / "config.json").write_text(json.dumps(REFUSED["gemma-3-4b-it"][0]))
    asked = []

    def download(name: str, file: str, **options: Any) -> str:
        asked.append((name, file))
        if name != "google/gemma-3-4b-it":
            raise huggingface_hub.errors.LocalEntryNotFoundError("no connection")
        return str(tmp_path / file)

    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    with pytest.raises(UserError, match=f"{MODEL}: google/gemma-3-4b-it is a multimodal model"):
        check_model(compose_run([*RUN_ON_GPUS, f"{MODEL}=google/gemma-3-4b-it"]))
    assert check_model(compose_run([*RUN_ON_GPUS, f"{MODEL}=no/connection"])) == (None, [])
    assert asked == [("google/gemma-3-4b-it", "config.json"), ("no/connection", "config.json")]
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert architecture_of("google/gemma-3-4b-it") is None and len(asked) == 2


def test_a_context_that_the_model_has_not_is_refused_before_a_server_starts(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({**PUBLISHED["OLMo-2-1124-7B"], "max_position_embeddings": 1024}))
    (tmp_path / "tokenizer.json").write_text("{}")
    (tmp_path / "chat_template.jinja").touch()
    (tmp_path / "pytorch_model.bin").touch()
    option = "actor_rollout_ref.rollout.max_model_len"
    with pytest.raises(UserError, match=f"{option}=10240: the model takes 1024 tokens"):
        check_model(compose_run([*RUN_ON_GPUS, f"{MODEL}={tmp_path}", f"{option}=10240"]))


@pytest.mark.parametrize("name", ["OLMo-2-1124-7B", "Phi-4-mini-instruct", "Qwen3-30B-A3B", "Moonlight-16B-A3B"])
def test_a_rehearsal_has_the_context_that_it_needs(name: str, tmp_path: Path) -> None:
    """Whatever the model's own: the rehearsal's prompts and responses may be 2,112 tokens long."""
    (tmp_path / "config.json").write_text(json.dumps({**PUBLISHED[name], "max_position_embeddings": 1024}))
    rehearsal = rehearsal_and_account(
        compose_unresolved([*RUN_ON_GPUS, "dryrun=true", f"{MODEL}={tmp_path}", f"cache_dir={tmp_path / 'cache'}"])
    )
    (made,) = (maker.__self__ for key, maker in rehearsal.makers.items() if key.endswith(tmp_path.name))
    assert made.architecture["max_position_embeddings"] >= rehearsal.config.actor_rollout_ref.rollout.max_model_len
