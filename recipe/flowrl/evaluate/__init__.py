"""From a model to numbers: samples of each problem, their grades, and what can be said from them."""
