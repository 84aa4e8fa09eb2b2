# Recipes are one line; everything runs from .venv, which is made once from requirements.lock.
# Where none is given, an environment that is there and can run this keeps its own.
PYTHON ?= $(shell .venv/bin/python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo .venv/bin/python || echo python3)
HC18_ROOT ?=
RECIPE ?= demo
SWEEP ?= demo
ARGS ?=
# The paper's test cohorts, where one has them.
ES_ROOT ?=
AF_ROOT ?=
# Test files that run at the same time, one thread each; they wait for what they start.
JOBS ?= 3
BIN := .venv/bin
# Waiting threads sleep instead of spinning: two processes on two cores then do not fight.
export OMP_WAIT_POLICY = PASSIVE
export HC18_ROOT ES_ROOT AF_ROOT

.DEFAULT_GOAL := help
.PHONY: help setup demo sweep dashboard bench table-fractions figure-fractions table-paper figure-paper table-paper-full figure-paper-full table-box figure-box figure-ledger test test-all lint lock clean

help: ## Show this help
	@awk -F':.*## ' '/^## /{print "\n" substr($$0,4)} /^[a-z-]+:.*## /{printf "  make %-18s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@printf '\nVariables (make demo HC18_ROOT=/data/hc18):\n  HC18_ROOT  HC18 folder in its official layout   [%s]\n  ES_ROOT    Test cohort ES of table-paper-full, if any [%s]\n  AF_ROOT    Test cohort AF likewise                  [%s]\n  PYTHON     Python 3.11 or later for .venv       [%s]\n  RECIPE     recipe; tables have their own default [%s]\n  SWEEP      name of a finished or running sweep  [%s]\n  ARGS       key=value overrides for the recipe   [%s]\n  JOBS       test files at the same time          [%s]\n' $(foreach name,HC18_ROOT ES_ROOT AF_ROOT PYTHON RECIPE SWEEP ARGS JOBS,'$(subst ','\'',$($(name)))')

## Set up
setup: .venv/.installed ## Make .venv from requirements.lock (once; about 6 GB)

# An environment keeps the Python that it was made with, unless it is cleared for another one.
.venv/.installed: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "sonosweep needs Python 3.11 or later: make PYTHON=/path/to/python3.11" >&2; exit 2; }
	@echo "Installing the locked packages into .venv (about 6 GB, a few minutes) ..."
	@$(PYTHON) -m venv $$([ "$$($(BIN)/python -VV 2>&1)" = "$$($(PYTHON) -VV)" ] || echo --clear) .venv
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --require-hashes -r requirements.lock
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

## Run
demo: .venv/.installed ## The whole job on phantoms, or on HC18 with HC18_ROOT=...
	@$(BIN)/sonosweep demo $(ARGS)

sweep: .venv/.installed ## Run a recipe: make sweep RECIPE=hc18_fractions HC18_ROOT=...
	@$(BIN)/sonosweep sweep $(RECIPE) $(ARGS)

dashboard: .venv/.installed ## W&B runs of a sweep in the terminal: make dashboard SWEEP=demo
	@$(BIN)/sonosweep dashboard $(SWEEP) $(ARGS)

bench: .venv/.installed ## Ours against the published way on this machine (about 10 minutes)
	@$(BIN)/sonosweep bench $(ARGS)

## Tables and figures (each runs what is missing)
table-fractions: .venv/.installed ## Table over 5-100 % of the real images
	@$(BIN)/sonosweep table $(if $(filter file,$(origin RECIPE)),hc18_fractions,$(RECIPE)) --kind fractions $(ARGS)

figure-fractions: .venv/.installed ## Figure of the same sweep
	@$(BIN)/sonosweep figure $(if $(filter file,$(origin RECIPE)),hc18_fractions,$(RECIPE)) --kind fractions $(ARGS)

table-paper: .venv/.installed ## The paper's curve beside ours in a small form, with every deviation
	@$(BIN)/sonosweep table $(if $(filter file,$(origin RECIPE)),paper_curve,$(RECIPE)) --kind paper $(ARGS)

figure-paper: .venv/.installed ## Figure of the same sweep
	@$(BIN)/sonosweep figure $(if $(filter file,$(origin RECIPE)),paper_curve,$(RECIPE)) --kind paper $(ARGS)

table-paper-full: .venv/.installed ## The same as the paper did it: ViT-B, Stable Diffusion; on GPUs
	@$(BIN)/sonosweep paper $(if $(filter file,$(origin RECIPE)),,--recipe $(RECIPE)) $(ARGS)

figure-paper-full: .venv/.installed ## Figure of the same sweep
	@$(BIN)/sonosweep paper --figure $(if $(filter file,$(origin RECIPE)),,--recipe $(RECIPE)) $(ARGS)

table-box: .venv/.installed ## Dice and HC error against increasing box jitter
	@$(BIN)/sonosweep table $(if $(filter file,$(origin RECIPE)),hc18_small,$(RECIPE)) --kind box $(ARGS)

figure-box: .venv/.installed ## Figure of the same: how much is the box?
	@$(BIN)/sonosweep figure $(if $(filter file,$(origin RECIPE)),hc18_small,$(RECIPE)) --kind box $(ARGS)

figure-ledger: .venv/.installed ## Dice against all labels, the paper's curve re-indexed
	@$(BIN)/sonosweep figure $(if $(filter file,$(origin RECIPE)),hc18_small,$(RECIPE)) --kind ledger $(ARGS)

## Develop
test: .venv/.installed ## Run the default test suite
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not long" -n $(JOBS) --dist loadfile --no-loadscope-reorder

test-all: .venv/.installed ## Run every test, the long ones too
	@$(BIN)/python -m pytest

lint: .venv/.installed ## Run the linters: style, and which package may import which
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/lint-imports

lock: ## Compile requirements.lock anew (needs uv; names, versions and hashes only)
	uv pip compile pyproject.toml --extra dev --extra dicom --generate-hashes --universal --python-version 3.11 --no-emit-index-url --no-emit-find-links --no-annotate --no-header -o requirements.lock

clean: ## Remove caches of Python and tools; never data, runs or .venv
	rm -rf .pytest_cache .ruff_cache build *.egg-info && find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
