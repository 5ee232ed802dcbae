"""The base policy of the change task; run as a module, this one trains it anew (CONTRIBUTING.md)."""

from pathlib import Path

from recipe.flowrl.tasks.base_policy import BasePolicy
from recipe.flowrl.tasks.change.data import ChangeConfig
from recipe.flowrl.tasks.change.reward import CHANGE
from recipe.flowrl.tasks.sft import SFTConfig
from recipe.flowrl.tasks.tiny_qwen2 import TinyQwen2Config

MODEL = TinyQwen2Config(hidden_size=128, layers=2, heads=4, intermediate_size=256, max_length=64)
BASE_POLICY = BasePolicy(
    CHANGE, SFTConfig(ChangeConfig(), MODEL, steps=400), Path(__file__).with_name("shipped_policy")
)

if __name__ == "__main__":
    BASE_POLICY.ship()
