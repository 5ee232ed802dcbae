"""Reward functions with verl's ``compute_score`` signature."""
