"""The exact test of the claim: a task whose answers can all be enumerated (``recipe/flowrl/tasks/modes/data.py``)."""
