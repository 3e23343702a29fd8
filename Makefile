# mathrl: every target sets up .venv by itself; see `make help`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# 1 installs vLLM too: by default where there is an NVIDIA GPU
ifeq ($(origin VLLM), undefined)
VLLM := $(shell nvidia-smi -L 2>/dev/null | grep -q '^GPU' && echo 1 || echo 0)
endif
ifeq ($(VLLM), 0)
EXTRAS := dev
READY := $(VENV)/.ready
else
EXTRAS := dev,vllm
READY := $(VENV)/.ready-vllm
endif
RECIPE ?= quickstart
ARGS ?=
MODEL ?=
BENCHMARK ?= gsm8k
RUN ?= runs/$(RECIPE)
# processes that run the tests, by default one a core and at most four: each imports torch; 0 runs them in one
JOBS ?= logical

.DEFAULT_GOAL := help
.PHONY: help setup train eval report test test-gpu check format bench bench-quickstart compare clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-18s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo "  variables: RECIPE=$(RECIPE) ARGS=\"--section.key value …\" MODEL=… BENCHMARK=$(BENCHMARK) RUN=$(RUN) PYTHON=$(PYTHON) VLLM=$(VLLM)"

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "mathrl needs Python 3.11 or newer: make PYTHON=python3.12 …"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt setuptools
ifneq ($(VLLM), 0)
	@echo "an NVIDIA GPU: vLLM is installed too, some gigabytes (make setup VLLM=0 leaves it out)"
endif
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[$(EXTRAS)]'
	@touch $@

setup: $(READY) ## make .venv with the pinned versions; on an NVIDIA GPU with vLLM

train: $(READY) ## run the main job: make train RECIPE=quickstart ARGS="--run.seed 1"
	$(BIN)/mathrl train $(RECIPE) --resume $(ARGS)

eval: $(READY) ## evaluate: make eval MODEL=DIR_OR_NAME BENCHMARK=gsm8k,svamp
	$(BIN)/mathrl eval $(MODEL) --benchmark $(BENCHMARK) $(ARGS)

report: $(READY) ## write the report of RUN again
	$(BIN)/mathrl report $(RUN)

test: $(READY) ## the tests that need no GPU
	$(BIN)/python -m pytest -n $(JOBS) --maxprocesses 4 --dist loadfile --no-loadscope-reorder $(ARGS)

test-gpu: $(READY) ## the tests that need an NVIDIA GPU
	$(BIN)/python -m pytest -m gpu tests/gpu $(ARGS)

check: $(READY) ## linter, formatter, types, import order
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/test_import_order.py

format: $(READY) ## format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(READY) ## sampling, verifiers, pool and evaluation, measured side by side on this machine
	$(BIN)/python benchmarks/sampling.py
	$(BIN)/python benchmarks/verifiers.py
	$(BIN)/python benchmarks/verifier_pool.py
	$(BIN)/python -m benchmarks.evaluation_speed

bench-quickstart: $(READY) ## the quickstart with three seeds, and its table
	$(BIN)/python benchmarks/quickstart.py $(ARGS)

compare: $(READY) ## TRPO, PPO, GRPO and REINFORCE on one budget
	$(BIN)/mathrl compare $(ARGS)

clean: ## remove caches and .venv; runs/ stays
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis build *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
