"""Measurements of the recipe on the machine at hand: ``python -m benchmarks.run`` (``make bench``)."""
