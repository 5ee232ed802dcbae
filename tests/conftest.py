"""The environment of a CPU run, from before the first test imports torch or verl."""

import os
from pathlib import Path

from omegaconf import OmegaConf

CPU = OmegaConf.load(Path(__file__).resolve().parents[1] / "configs" / "cluster" / "cpu.yaml")
os.environ |= {name: str(value) for name, value in CPU.ray_kwargs.ray_init.runtime_env.env_vars.items()}
os.environ["HF_HUB_OFFLINE"] = "1"
