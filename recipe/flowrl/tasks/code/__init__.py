"""Programming problems: their tests, and the reward that runs programs against them in a sandbox."""
