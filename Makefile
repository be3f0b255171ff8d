# `make help` lists the targets. `make demo` and `make test` work in a bare clone: each first makes .venv.

# The interpreter of the environment, 3.10 or newer.
PYTHON ?= python3
# The PyTorch to install. It goes in before everything that depends on it, so that nothing else chooses the build.
# An own build, say for a GPU: make demo TORCH=torch==2.11.0, or TORCH=path/to/torch.whl. It is the one that the whole
# suite is run on before a change lands.
TORCH ?= torch==2.13.0
# The oldest and the newest PyTorch that are supported, and Python 3.10 for the oldest where it can be found.
TORCH_OLDEST ?= torch==2.6.0
TORCH_NEWEST ?= torch==2.14.1
PYTHON_OLDEST ?= $(shell for p in python3.10 "$$(pyenv prefix 3.10 2>/dev/null)/bin/python"; do \
	"$$p" -c '' 2>/dev/null && { echo "$$p"; exit; }; done; echo $(PYTHON))

VENV ?= .venv
EXTRAS ?= dev,docs
BIN := $(VENV)/bin
# One stamp per requirement: another TORCH, or a newer pyproject.toml, installs again; otherwise nothing is done.
TORCH_TAG = $(shell printf '%s' '$(TORCH)' | tr -cs 'A-Za-z0-9.' '-')
STAMP = $(VENV)/.installed-$(TORCH_TAG)
# Of every test with many cases run one in so many: make test-oldest SHARE=1/16. What is marked `whole` runs all.
SHARE ?= 1/1
# How long `make fuzz` goes on, where it begins, and words that a case's description has to contain.
MINUTES ?= 5
SEED ?= 0
ONLY ?=
# Each worker is one core's work; importing torch in dozens of them costs more than it gains.
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 8 --share $(SHARE)

.DEFAULT_GOAL := help
.PHONY: help env demo test test-slow test-gpu test-torch test-oldest test-newest gpu-check fuzz lint format gallery docs build clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

env: $(STAMP) ## make .venv and install the package and everything below into it

$(STAMP): pyproject.toml
	@command -v "$(PYTHON)" >/dev/null || { \
		echo "error: no Python called '$(PYTHON)'; name one, 3.10 or newer: make PYTHON=/path/to/python3" >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
		echo "error: Python 3.10 or newer is needed, and '$(PYTHON)' is $$("$(PYTHON)" -V 2>&1);" \
			"name another: make PYTHON=/path/to/python3" >&2; exit 1; }
	@echo "installing into $(VENV); this is done once and takes a minute or more"
	test -x $(BIN)/python || "$(PYTHON)" -m venv $(VENV)
	rm -f $(VENV)/.installed-*
	$(BIN)/python -m pip install --quiet "$(TORCH)"
	$(BIN)/python -m pip install --quiet --editable ".[$(EXTRAS)]"
	@touch $@

demo: $(STAMP) ## compare implicit with unrolled training on the digits; results in demo/
	$(BIN)/implicit-bregman compare --out demo

test: $(STAMP) ## run the test suite, but for what is marked slow
	$(PYTEST)

test-slow: $(STAMP) ## run the tests that are marked slow
	$(PYTEST) -m slow

test-gpu: $(STAMP) ## run the tests that need a GPU
	$(BIN)/python -m pytest -m gpu

# At most eight minutes on one card, the self-test, the tests and the times together.
gpu-check: $(STAMP) ## run the tests that need a GPU, and write the table of times into docs/benchmarks.md
	timeout 60 $(BIN)/implicit-bregman doctor
	timeout 200 $(BIN)/python -m pytest -m gpu
	timeout 220 $(BIN)/python docs/scripts/gpu.py --time

test-torch: ## run the test suite on another PyTorch, in its own environment: make test-torch TORCH=torch==2.11.0
	$(MAKE) --no-print-directory test VENV=.venv-$(TORCH_TAG) EXTRAS=dev

test-oldest: ## run the test suite on the oldest PyTorch that is supported
	$(MAKE) --no-print-directory test-torch TORCH=$(TORCH_OLDEST) PYTHON=$(PYTHON_OLDEST)

test-newest: ## run the test suite on the newest PyTorch that is supported
	$(MAKE) --no-print-directory test-torch TORCH=$(TORCH_NEWEST)

fuzz: $(STAMP) ## judge random calls by solutions of the judge's own: make fuzz MINUTES=5 SEED=0 ONLY="float32 tanh"
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.fuzz --minutes $(MINUTES) --seed $(SEED) $(if $(ONLY),--only "$(ONLY)")

lint: $(STAMP) ## check style, formatting and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP) ## mend style and formatting where that is automatic
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

gallery: $(STAMP) ## run the examples, and renew the numbers and figures that their pages show
	$(BIN)/python docs/scripts/gallery.py

docs: $(STAMP) ## build the site into site/; a warning is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

build: $(STAMP) ## build wheel and sdist into dist/, check what they say of themselves, and import the wheel
	rm -rf dist build/wheel
	$(BIN)/python -m build
	$(BIN)/python -m twine check --strict dist/*
	$(BIN)/python -m pip install --quiet --no-deps --target build/wheel dist/*.whl
	cd build/wheel && ../../$(BIN)/python -c 'import os, implicit_bregman as ib; \
		assert ib.__file__.startswith(os.getcwd()), ib.__file__; print("the wheel imports:", ib.__version__)'

clean: ## remove every environment, cache and result
	rm -rf .venv* build demo compare-results train-results reproduce-results study-results convergence-results benchmark-results dist site .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
