# make demo: set everything up and run the whole job offline. make test: set everything up and run the tests.
# PYTHON: the interpreter to build .venv with (3.11 or newer).
# TORCH:  what pip installs first; give a CPU index on Linux machines without a GPU to spare the CUDA packages, e.g.
#         make demo TORCH="torch==2.13.0 --index-url <PyTorch's CPU index>"

PYTHON ?= python3
TORCH ?= torch==2.13.0
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet
PYTEST_ARGS ?= $(if $(filter true,$(CI)),--cov=src/triune --cov-report=term:skip-covered -m "not long",-m "not slow")

.PHONY: demo test lint audit format setup claims evidence clean
.DEFAULT_GOAL := demo

demo: $(VENV)/.ready
	$(BIN)/triune demo --out demo

test: $(VENV)/.ready-dev
	$(BIN)/python -m pytest -n 2 --dist worksteal $(PYTEST_ARGS)

lint: $(VENV)/.ready-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# known vulnerabilities of what is installed; says so and goes on where the index of them cannot be reached
audit: $(VENV)/.ready-dev
	$(BIN)/python .ci/audit.py

format: $(VENV)/.ready-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

setup: $(VENV)/.ready-dev

# docs/claims.md from the result files: seconds
claims: $(VENV)/.ready
	$(BIN)/python benchmarks/claims.py

# the result files themselves: hours; goes on where it was stopped. EVIDENCE_ARGS="--only demo" for a part of it
evidence: $(VENV)/.ready
	$(BIN)/python benchmarks/evidence.py $(EVIDENCE_ARGS)

$(VENV)/.ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Triune needs Python 3.11 or newer; got $$($(PYTHON) --version). Set PYTHON=/path/to/python3.11"; exit 1; }
	@echo "setting up $(VENV) (once; about two minutes)"
	$(PYTHON) -m venv $(VENV)
	$(PIP) $(TORCH)
	$(PIP) --constraint constraints.txt --editable .
	@touch $@

$(VENV)/.ready-dev: $(VENV)/.ready
	$(PIP) --constraint constraints.txt --editable '.[dev]'
	@touch $@

clean:
	rm -rf $(VENV) demo runs
