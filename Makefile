# `make demo` runs the main job on the code graph of this Python environment; `make test` checks the project.
# Both set everything up by themselves in .venv.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
DEMO_DIR ?= build/demo

.PHONY: demo test lint soak bench install clean

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

demo: install
	$(BIN)/hopstream demo --out $(DEMO_DIR)

lint: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal -m "not soak"

soak: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal -m soak
	$(BIN)/python -m tests.benchmarks.sampling --small --json
	$(BIN)/python -m tests.benchmarks.verification --small --json
	$(BIN)/python -m tests.benchmarks.ingest --small --json
	$(BIN)/python -m tests.benchmarks.cache --small --json
	$(BIN)/python -m tests.benchmarks.overlap --small --json
	$(BIN)/python -m tests.benchmarks.hosts --small --json
	$(BIN)/python -m tests.benchmarks.out_of_core --small --json
	$(BIN)/python -m tests.benchmarks.capped_run --small --json

bench: install
	$(BIN)/python -m tests.benchmarks.sampling --json
	$(BIN)/python -m tests.benchmarks.quality --json
	$(BIN)/python -m tests.benchmarks.verification --json
	$(BIN)/python -m tests.benchmarks.ingest --json
	$(BIN)/python -m tests.benchmarks.cache --json
	$(BIN)/python -m tests.benchmarks.overlap --json
	$(BIN)/python -m tests.benchmarks.hosts --json
	$(BIN)/python -m tests.benchmarks.out_of_core --json
	$(BIN)/python -m tests.benchmarks.capped_run --json

clean:
	rm -rf build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache
