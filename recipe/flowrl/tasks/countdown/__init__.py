"""Countdown: puzzles, their solutions, the reward, and a small base policy."""
