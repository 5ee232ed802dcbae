"""Settings that have to be in place before the first test imports torch."""

import os

# On a busy machine, OpenMP threads that spin while they wait turn a 15 microsecond operation into 8 milliseconds.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
