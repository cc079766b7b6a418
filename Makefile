# `make demo` shows what flagen does, `make test` checks it, `make test-all` checks everything that can be checked here.
# All of them set up .venv the first time.

PYTHON ?= python3
VENV ?= .venv
# Any build of torch will do, the CPU one included; see README.md for how to choose another.
TORCH ?= torch==2.13.0
DEMO ?= gated_delta_product

BIN := $(VENV)/bin
READY := $(VENV)/.ready

.DEFAULT_GOAL := help
.PHONY: help demo build check-generated tables check-tables checks test test-all test-processors lint bench

# What rounds as the processor adds up, and has to keep its bounds on any.
PYTORCH := $(addprefix tests/numeric/test_,naive_recurrent.py naive_chunk.py scan_naive_chunk.py extremes.py \
	references.py resume.py) tests/backends/test_torch_numerics.py
KERNELS := $(filter-out $(PYTORCH),$(wildcard tests/numeric/test_*.py))

help:
	@echo "make demo    build one variant, prove it, cross-check its operators and show one"
	@echo "make build   build every spec in specs/ that changed"
	@echo "make tables  bring the tables of what kernels compile to and move up to date"
	@echo "make test    lint, compare generated/ with its specs and the tables with generated/, run the tests: what CI runs,"
	@echo "             a quarter of an hour on two cores at most"
	@echo "make test-all  the same with every test of every variant, mistakes in kernels, a thousand random specs, and the"
	@echo "             numeric tests as other processors round: before a release; hours on two cores"
	@echo "make test-processors  the numeric tests as other processors round"
	@echo "make lint    ruff and mypy"
	@echo "make bench   time the operators of generated/ against each other"

$(READY): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet "$(TORCH)"
	$(BIN)/pip install --quiet --editable ".[triton,dev,bench]"
	@touch $@

demo: $(READY)
	$(BIN)/flagen build --force specs/$(DEMO).yaml
	@echo
	$(BIN)/python examples/crosscheck.py $(DEMO)
	@echo
	@echo "generated/$(DEMO)/naive_recurrent.py, the simplest of them:"
	@echo
	@cat generated/$(DEMO)/naive_recurrent.py

build: $(READY)
	$(BIN)/flagen build --all

check-generated: $(READY)
	$(BIN)/flagen build --all --check

tables: $(READY)
	$(BIN)/python -m benchmarks.tables

check-tables: $(READY)
	$(BIN)/python -m benchmarks.tables --check

# Two at a time.
checks: $(READY)
	$(MAKE) --jobs 2 lint check-generated check-tables

test: checks
	$(BIN)/python -m pytest -n 2 --dist loadgroup

test-all: checks
	$(BIN)/python -m pytest -n 2 --dist loadgroup --all
	$(MAKE) test-processors
	$(BIN)/python -m tests.fuzz.explore --count 1000

# The PyTorch forms of every variant, and the kernels of those that make test climbs with.
test-processors: $(READY)
	$(BIN)/python -m tests.processors $(BIN)/python -m pytest -n 2 --dist loadgroup --all $(PYTORCH)
	$(BIN)/python -m tests.processors $(BIN)/python -m pytest -n 2 --dist loadgroup $(KERNELS)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(READY)
	$(BIN)/python -m benchmarks.naive_chunk
