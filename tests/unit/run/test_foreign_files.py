"""Run directories and checkpoints that somebody else made: nothing in them is carried out."""

import json
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from jinja2.exceptions import SecurityError, UndefinedError
from omegaconf import OmegaConf
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, Qwen2Config, Qwen2ForCausalLM
from transformers.utils.chat_template_utils import _compile_jinja_template

import verl_ext.cpu  # noqa: F401  the platform, which replays name; verl looks for it when it is imported, once
from recipe.flowrl.checkpoint.export import export
from recipe.flowrl.common.errors import UserError
from recipe.flowrl.reporting.run_report import write_report
from recipe.flowrl.run import replay


class Hostile:
    """Unpickled, it makes a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.mark),)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """As one rank of FSDP2 leaves it."""
    actor = tmp_path / "global_step_1" / "actor"
    (actor / "huggingface").mkdir(parents=True)
    config = Qwen2Config(
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        vocab_size=16,
    )
    config.architectures = ["Qwen2ForCausalLM"]
    config.save_pretrained(actor / "huggingface")
    (actor / "fsdp_config.json").write_text('{"FSDP_version": 2, "world_size": 1}')
    torch.save(Qwen2ForCausalLM(config).state_dict(), actor / "model_world_size_1_rank_0.pt")
    return actor.parent


@pytest.mark.parametrize("raw", [True, False])
def test_a_checkpoint_runs_no_code_unless_it_is_trusted(raw: bool, checkpoint: Path, tmp_path: Path) -> None:
    mark, shard = tmp_path / "mark", checkpoint / "actor" / "model_world_size_1_rank_0.pt"
    weights = torch.load(shard, weights_only=True)
    content = {**weights, "extra": Hostile(mark)}
    shard.write_bytes(pickle.dumps(content)) if raw else torch.save(content, shard)
    with pytest.raises(UserError, match=r"actor.*trust=true"):
        export(checkpoint, tmp_path / "out")
    assert not mark.exists() and not (tmp_path / "out").exists()
    if not raw:
        with pytest.raises(Exception):  # noqa: B017, PT011  whatever verl makes of what isn't a tensor
            export(checkpoint, tmp_path / "out", trust=True)
        assert mark.exists(), "asked for"


@pytest.mark.parametrize("content", [b"", b"x", b"PK\x03\x04", b"\x80\x02."])
def test_a_broken_shard_is_one_line(content: bytes, checkpoint: Path, tmp_path: Path) -> None:
    (checkpoint / "actor" / "model_world_size_1_rank_0.pt").write_bytes(content)
    with pytest.raises(UserError, match="actor") as refused:
        export(checkpoint, tmp_path / "out")
    assert len(str(refused.value).splitlines()) == 1 and not (tmp_path / "out").exists()


@pytest.mark.parametrize("size", ["1e400", '"x"', "-1", "0", "null", "[]", "1000000000000"])
def test_a_wrong_number_of_ranks_is_one_line(size: str, checkpoint: Path, tmp_path: Path) -> None:
    (checkpoint / "actor" / "fsdp_config.json").write_text(f'{{"world_size": {size}}}')
    with pytest.raises(UserError, match="world_size"):
        export(checkpoint, tmp_path / "out")


TARGETS = [
    "os.mkdir",
    "verl.workers.config.HFModelConfig",
    "builtins.eval",
    "verl.utils.import_utils.import_external_libs",
]


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(
    "place", ["actor_rollout_ref.actor", "actor_rollout_ref.actor.optim.x", "actor_rollout_ref.actor.list"]
)
def test_a_replay_makes_no_class_of_the_configuration(target: str, place: str, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    named = {"_target_": target, "path": str(mark)}
    config = OmegaConf.create({"actor_rollout_ref": {"actor": {"_target_": "verl.workers.config.FSDPActorConfig"}}})
    OmegaConf.update(config, place, [named] if place.endswith("list") else named, merge=False)
    OmegaConf.save(config, tmp_path / "config.yaml")
    (tmp_path / "batch.pt").touch()
    with pytest.raises(UserError, match=rf"names the class {target}"):
        replay.replay_file(tmp_path / "batch.pt", tmp_path / "config.yaml", trust=False)
    assert not mark.exists()


def test_a_replay_takes_no_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VERL_USE_EXTERNAL_MODULES", "verl_ext.cpu")
    variables = {"VERL_PLATFORM": "cpu", "VERL_USE_EXTERNAL_MODULES": "os_evil", "LD_PRELOAD": "/x.so"}
    config = {"flowrl": {"beta": 15.0}, "ray_kwargs": {"ray_init": {"runtime_env": {"env_vars": variables}}}}
    OmegaConf.save(OmegaConf.create(config), tmp_path / "config.yaml")
    with pytest.raises(UserError, match="isn't a batch"):
        replay.replay_file(tmp_path / "batch.pt", tmp_path / "config.yaml", trust=False)
    assert "LD_PRELOAD" not in os.environ and os.environ["VERL_USE_EXTERNAL_MODULES"] == "verl_ext.cpu"


@pytest.mark.parametrize(
    "content", ["", "[", "- a", "a: ${b}", "3", "!!python/object/apply:os.mkdir [x]", "\x00", "actor_rollout_ref: 3"]
)
def test_a_replay_refuses_what_is_no_configuration(content: str, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(content)
    with pytest.raises(UserError, match=r"config\.yaml|batch") as refused:
        replay.replay_file(tmp_path / "batch.pt", tmp_path / "config.yaml", trust=False)
    assert len(str(refused.value).splitlines()) == 1


def test_a_report_of_wrong_types_has_what_is_whole(tmp_path: Path) -> None:
    rows = ['{"step": 1, "critic/score/mean": 0.5}', '{"step": "x"}', '{"step": 1e400}', '{"step": true}', "[" * 5000]
    (tmp_path / "metrics.jsonl").write_text("\n".join(rows))
    (tmp_path / "run.json").write_text(
        '{"algo": [1], "attempts": {}, "exit_status": "x", "finished": {}, "experiment": "named"}'
    )
    (tmp_path / "config.yaml").write_text(
        "actor_rollout_ref: {model: {path: [1, {}]}}\npassword: |\n  first\n  hunter2\n"
    )
    (tmp_path / "validation").mkdir()
    (tmp_path / "validation" / "1.jsonl").write_text(
        '{"input": "a", "output": "b", "gts": "{\\"numbers\\": 3, \\"target\\": 1}"}'
    )
    html = write_report(tmp_path).read_text()
    assert "named" in html and "0.5" in html and "hunter2" not in html and "first" not in html.split("config.yaml")[-1]


TEMPLATES = {  # of a tokenizer: published ways out of Jinja's sandbox, each of which would show a class or a module
    "classes": "{{ ''.__class__.__mro__ }}",
    "a filter for an attribute (CVE-2025-27516)": "{{ ('{0.__class__}'|attr('format'))(messages) }}",
    "a format method kept (CVE-2024-56326)": "{% set f = '{0.__class__.__mro__}'.format %}{{ [f]|map('first')|list }}",
    "a format method mapped": "{{ ['{0.__class__}']|map('format', messages)|list }}",
    "globals of a function": "{{ raise_exception.__globals__ }}",
    "globals by a made-up name": "{{ (raise_exception|attr('__glo' ~ 'bals__')) }}",
    "globals of Jinja's own": "{{ cycler.__init__.__globals__ }}{{ lipsum.__globals__ }}",
    "the template itself": "{{ self.__init__.__globals__ }}",
    "what it is given": "{{ messages.append(messages) }}",
    "a range without end": "{{ range(10**9)|list }}",
}


@pytest.mark.parametrize("way", TEMPLATES)
def test_a_chat_template_gets_out_of_nothing(way: str) -> None:
    """verl and vLLM render it with transformers, from a model that somebody else made."""
    messages = [{"role": "user", "content": "x"}]
    template = _compile_jinja_template(TEMPLATES[way])
    try:
        shown = template.render(messages=messages)
    except (SecurityError, UndefinedError, OverflowError, TypeError):
        shown = ""
    assert "class" not in shown and "module" not in shown and "__" not in shown
    assert messages == [{"role": "user", "content": "x"}]


@pytest.mark.parametrize("load", [AutoConfig, AutoTokenizer, AutoModelForCausalLM])
def test_a_models_own_modules_are_not_imported(load: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which ``auto_map`` names, as where vLLM imported them whatever it was told (CVE-2026-22807)."""
    mark = tmp_path / "mark"
    names = ("AutoConfig", "AutoTokenizer", "AutoModelForCausalLM")
    modules = {name: "own.Own" for name in names} | {"AutoTokenizer": ["own.Own", None]}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "own", "auto_map": modules}))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "Own", "auto_map": modules}))
    (tmp_path / "own.py").write_text(f"import os\nos.mkdir({str(mark)!r})\nclass Own: pass")
    monkeypatch.setattr("builtins.input", lambda prompt="": "n")
    with pytest.raises((ValueError, OSError, EOFError, KeyError)):
        load.from_pretrained(tmp_path)
    assert not mark.exists()
