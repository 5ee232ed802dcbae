"""``dryrun=true`` of published models, from their configurations: six families through the whole stack."""

import json
from pathlib import Path

import pytest
from published_configs import PUBLISHED
from runs import finish, start
from transformers import AutoModelForCausalLM

NAMES = ("Qwen3-30B-A3B", "Llama-3.1-8B", "gemma-2-2b", "Phi-4-mini-instruct", "granite-3.3-8b", "OLMo-2-1124-7B")


@pytest.mark.slow(reason="two minutes each; the first holds experts, the others a softcap, long ropes, scales")
@pytest.mark.parametrize("name", NAMES)
def test_rollout_and_trainer_agree_before_and_after_a_sync(name: str, tmp_path: Path) -> None:
    model, run_dir = tmp_path / "model", tmp_path / "run"
    model.mkdir()
    (model / "config.json").write_text(json.dumps(PUBLISHED[name]))
    options = ["cluster=1x8", "dryrun=true", f"actor_rollout_ref.model.path={model}", f"cache_dir={tmp_path / 'cache'}"]
    run = finish(start(run_dir, *options, experiment="math_7b"), Path(f"{run_dir}-rehearsal"))
    assert run.status == 0, f"{run.output[-3000:]}\n{run.log[-6000:]}"
    assert all(run.metrics[step]["training/rollout_probs_diff_max"] < 1e-3 for step in (1, 2))
    assert run.metrics[2]["actor/grad_norm"] > 0
    exported = AutoModelForCausalLM.from_pretrained(run.run_dir / "exported")
    assert exported.config.model_type == PUBLISHED[name]["model_type"]
