# `make` prints what there is. Settings: DATA=folder of class folders, OUT=output folder,
# ARGS="--epochs 3 …" (any option of `alexmri train`), PYTHON=python3.12
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
OUT ?= runs/$(shell date +%Y%m%d-%H%M%S)
DEMO := data/demo

.DEFAULT_GOAL := help
.PHONY: help setup train test lint lock bench clean

help:  ## print this help
	@echo "alexmri: AlexNet on brain-MRI slices. Research software, not a diagnostic device."
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## (.*)/  make \1\t\2/' | expand -t 18

setup: $(VENV)/.installed  ## make a virtual environment with the exact versions of requirements.lock

train: $(VENV)/.installed $(if $(DATA),,$(DEMO))  ## train and measure: DATA=folder, without it on synthetic demo data
ifndef DATA
	@echo "############################################################################"
	@echo "#  No DATA= was given: training on SYNTHETIC demo data in $(DEMO)."
	@echo "#  With your own slices:  make train DATA=folder-of-class-folders"
	@echo "############################################################################"
endif
	$(BIN)/alexmri train --data "$(or $(DATA),$(DEMO))" --out "$(OUT)" $(ARGS)

test: $(VENV)/.developing  ## run the tests, with coverage of the package
	$(BIN)/pytest --cov --cov-report=term --cov-fail-under=90

lint: $(VENV)/.developing  ## check style, types and which module may import which
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

lock:  ## write the lock files anew from requirements.txt (needs uv)
	uv pip compile $(LOCK) requirements.txt -o requirements.lock
	uv pip compile $(LOCK) requirements/dev.in -c requirements.lock -o requirements/dev.lock

bench: $(VENV)/.installed  ## measure how fast this machine trains
	$(BIN)/python bench/train.py

clean:  ## remove the virtual environment and caches; data and runs stay
	rm -rf $(VENV) build .coverage .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

LOCK := --quiet --universal --python-version 3.11 --fork-strategy fewest --generate-hashes --no-header --no-emit-index-url --no-emit-find-links

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' || { \
	  echo "alexmri needs Python 3.11, 3.12 or 3.13, $(PYTHON) is another: make $(MAKECMDGOALS) PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: requirements.lock pyproject.toml | $(VENV)/bin/python
	@echo "installing into $(VENV) (PyTorch with CUDA is 3 GB: this takes minutes, once)"
	$(BIN)/python -m pip install --quiet --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

$(VENV)/.developing: requirements/dev.lock | $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --require-hashes -r requirements/dev.lock
	@touch $@

$(DEMO): | $(VENV)/.installed
	$(BIN)/alexmri demo-data $(DEMO)
