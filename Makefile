# Two commands set up everything they need: `make demo` and `make test`.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin

.PHONY: help demo test check lint format bench test-cluster test-gpu native wheel clean
.DEFAULT_GOAL := help

help:  ## show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 22

demo: $(VENV)/.runtime  ## the whole system on this machine: two nodes, sixteen simulated GPUs
	@$(BIN)/hami sandbox demo

test: $(VENV)/.develop  ## every test
	@$(BIN)/python -m pytest -n 2 $(PYTEST_ARGS)

check: $(VENV)/.develop lint  ## format, lint, types, imports and the fast tests
	@$(BIN)/python -m pytest -n 2 -q -m "not slow" tests/core tests/kube tests/controllers $(PYTEST_ARGS)

lint: $(VENV)/.develop  ## format, lint, types, import rules, generated files
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@scripts/generated-files-are-fresh

format: $(VENV)/.develop  ## write the format
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

bench: $(VENV)/.develop  ## the benchmarks; figures on stdout
	@scripts/bench

test-cluster: $(VENV)/.develop  ## API-facing tests against the cluster of HAMI_TEST_KUBECONFIG
	@test -n "$$HAMI_TEST_KUBECONFIG" || { echo "set HAMI_TEST_KUBECONFIG to a kubeconfig" >&2; exit 2; }
	@$(BIN)/python -m pytest -m cluster $(PYTEST_ARGS)

test-gpu: $(VENV)/.develop  ## the suite for a machine with a GPU: GPU_ARGS=--quick, or --simulated
	@scripts/test-gpu $(GPU_ARGS)

native: $(VENV)/.runtime  ## build the shim and the simulated driver in place
	@$(BIN)/python native.py

wheel: $(VENV)/.develop  ## one wheel and one sdist in dist/
	@$(BIN)/python -m build

clean:  ## forget what was installed and built
	rm -rf $(VENV) build dist hami/shim/lib hami/sandbox/gpu/lib

$(VENV)/.runtime: pyproject.toml native.py scripts/setup
	@PYTHON="$(PYTHON)" VENV="$(VENV)" scripts/setup runtime

$(VENV)/.develop: pyproject.toml native.py scripts/setup
	@PYTHON="$(PYTHON)" VENV="$(VENV)" scripts/setup develop
