"""A training step beside TRL's: the same model, prompts, lengths and updates. ``python -m benchmarks.trl``."""
