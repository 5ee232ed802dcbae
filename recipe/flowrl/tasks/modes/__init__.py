"""The task of the exact test: every answer can be enumerated, so the target distribution is known."""
