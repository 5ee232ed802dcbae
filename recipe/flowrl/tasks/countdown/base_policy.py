"""The base policy of the Countdown job; run as a module, this one trains it anew (CONTRIBUTING.md)."""

from pathlib import Path

from recipe.flowrl.tasks.base_policy import BasePolicy
from recipe.flowrl.tasks.countdown.data import CountdownConfig
from recipe.flowrl.tasks.countdown.reward import COUNTDOWN
from recipe.flowrl.tasks.sft import SFTConfig

BASE_POLICY = BasePolicy(COUNTDOWN, SFTConfig(CountdownConfig()), Path(__file__).with_name("shipped_policy"))

if __name__ == "__main__":
    BASE_POLICY.ship()
