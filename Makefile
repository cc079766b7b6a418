# `make demo` shows what flagen does, `make test` checks all of it. Both set up .venv the first time.

PYTHON ?= python3
VENV ?= .venv
# Any build of torch will do, the CPU one included; see README.md for how to choose another.
TORCH ?= torch==2.13.0
DEMO ?= gated_delta_product

BIN := $(VENV)/bin
READY := $(VENV)/.ready

.DEFAULT_GOAL := help
.PHONY: help demo build check-generated tables check-tables test lint bench

help:
	@echo "make demo    build one variant, prove it, cross-check its operators and show one"
	@echo "make build   build every spec in specs/ that changed"
	@echo "make tables  bring the tables of what kernels compile to and move up to date"
	@echo "make test    lint, compare generated/ with its specs and the tables with generated/, run every test"
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
	@echo "generated/$(DEMO)/naive.py, the simplest of them:"
	@echo
	@cat generated/$(DEMO)/naive.py

build: $(READY)
	$(BIN)/flagen build --all

check-generated: $(READY)
	$(BIN)/flagen build --all --check

tables: $(READY)
	$(BIN)/python -m benchmarks.tables

check-tables: $(READY)
	$(BIN)/python -m benchmarks.tables --check

test: lint check-generated check-tables
	$(BIN)/python -m pytest -n 2 --dist loadgroup

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(READY)
	$(BIN)/python -m benchmarks.naive_chunk
