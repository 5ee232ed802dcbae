"""Checkpoints: which one a run continues from, and how one leaves verl as a Hugging Face model."""
