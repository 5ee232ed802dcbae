"""Arithmetic word problems, and SmolLM2-135M fine-tuned on them."""
