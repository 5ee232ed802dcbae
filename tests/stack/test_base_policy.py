"""The training behind the base policy that comes with the recipe: verl's SFT trainer, for a few steps."""

from pathlib import Path

from safetensors.torch import load_file

from recipe.flowrl.tasks.base_policy import REPORT, WEIGHTS
from recipe.flowrl.tasks.countdown.base_policy import BASE_POLICY
from recipe.flowrl.tasks.countdown.data import CountdownConfig
from recipe.flowrl.tasks.sft import SFTConfig
from recipe.flowrl.tasks.tiny_qwen2 import build


def test_the_command_that_made_the_base_policy_trains(tmp_path: Path) -> None:
    config = SFTConfig(puzzles=CountdownConfig(max_value=6, train_size=30, test_size=10), steps=12, batch_size=16)
    lines: list[str] = []
    BASE_POLICY.ship(lines.append, config, tmp_path / "shipped")
    build(tmp_path / "random", config.model)
    before, after = (load_file(tmp_path / name / WEIGHTS) for name in ("random", "shipped"))
    assert before.keys() == after.keys()
    moved = max((after[name].float() - before[name]).abs().max().item() for name in before)
    assert 1e-3 < moved < 1, "twelve steps at a rate of 2e-3, warmed up"
    assert config.key() in (tmp_path / "shipped" / REPORT).read_text()
    assert "base policy: solves" in lines[-1]
