# `make` prints what there is. Settings: DATA=folder of class folders, OUT=output folder,
# ARGS="--epochs 3 …" (any option of `alexmri train`), RUNTIME=docker|venv, BASE_IMAGE=debian:bookworm,
# PORT=8080, PYTHON=python3.12
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# The two generations of SageMaker's SDK exclude each other and some of our own packages.
SDK2 := .venv-sdk2
SDK3 := .venv-sdk3
DEMO := data/.demo
# Asked only where needed, since the answers take a moment.
RUNTIME ?= $(shell docker info >/dev/null 2>&1 && docker compose version >/dev/null 2>&1 && echo docker || echo venv)
GPU = $(shell nvidia-smi -L >/dev/null 2>&1 && docker info --format '{{json .Runtimes}}' | grep -o nvidia | head -1)
# Says why a GPU that is here computes nothing: its driver does not answer, or Docker does not know it.
TELL_GPU = $(if $(GPU),,@! command -v nvidia-smi >/dev/null || { \
  said="$$(nvidia-smi -L 2>&1)" && said="Docker has no NVIDIA runtime; install NVIDIA's container toolkit"; \
  echo "make: the GPU of this machine is not used: $$said" >&2; })
COMPOSE = docker compose -f docker-compose.yml $(if $(GPU),,-f docker-compose.cpu.yml)
BASE_IMAGE ?= $(shell sed -n 's/^ARG BASE_IMAGE=//p' Dockerfile)
# The folders of the compose file, and who owns what is written there.
RUNS = $$(realpath -m -- "$(or $(OUT),runs)")
FOLDERS = DATA="$$(realpath -m -- "$(or $(DATA),data)")" OUT="$(RUNS)" HOST_UID=$$(id -u) HOST_GID=$$(id -g)
# Made-up pictures are for those who named no data.
export ALEXMRI_DEMO_DATA = $(if $(DATA),0,1)
export BASE_IMAGE

.DEFAULT_GOAL := help
.PHONY: help setup train train-docker train-venv serve serve-docker serve-venv image sbom base-image known-runtime test test-fast test-docker conformance conformance-clients aws-requests lint reference lock bench gpu-check clean

help:  ## print this help
	@echo "alexmri: AlexNet on brain-MRI slices. Research software, not a diagnostic device."
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 20

setup: $(VENV)/.installed  ## make a virtual environment with the exact versions of requirements.lock

train: known-runtime  ## train and measure, in Docker where it runs: DATA=folder, without it on synthetic demo data
	@$(MAKE) --no-print-directory train-$(RUNTIME)

serve: known-runtime  ## answer HTTP requests with the trained model on port 8080: PORT=, OUT=folder of the training
	@$(MAKE) --no-print-directory serve-$(RUNTIME)

image: base-image  ## build the Docker image: BASE_IMAGE=any Debian or Ubuntu image
	$(COMPOSE) build serve

sbom: base-image  ## write what is in the image, with versions and licences, to alexmri.cdx.json (CycloneDX)
	docker build --target sbom --output . --build-arg BASE_IMAGE $(foreach name,TORCH_CUDA TORCH_INDEX TORCH_WHEELS,$(if $($(name)),--build-arg $(name)=$($(name)))) .

train-docker: base-image
	@echo "make: training in Docker $(if $(GPU),with the GPU,without a GPU); RUNTIME=venv does without Docker"
	$(TELL_GPU)
	@mkdir -p "$(or $(DATA),data)" "$(RUNS)/model" "$(RUNS)/output" "$(RUNS)/checkpoints"
	$(FOLDERS) $(COMPOSE) run --rm train train $(ARGS)
	@echo "model: $(RUNS)/model"
	@echo "report: $(RUNS)/output/data/report.html"

serve-docker: base-image
	@test -f "$(RUNS)/model/model.json" || { echo "there is no model in $(RUNS)/model; first: make train"; exit 1; }
	$(TELL_GPU)
	$(FOLDERS) $(COMPOSE) up --detach --wait serve
	@echo "serving $(RUNS)/model on http://localhost:$(or $(PORT),8080); to stop: $(COMPOSE) stop serve"

known-runtime:
	@case "$(RUNTIME)" in docker|venv) ;; *) echo "RUNTIME is docker or venv, and not $(RUNTIME)" >&2; exit 1;; esac
	@test -z "$(DATA)" || test -d "$(DATA)" || { echo "the data folder $(DATA) does not exist" >&2; exit 1; }

base-image:
	@docker image inspect $(BASE_IMAGE) >/dev/null 2>&1 || docker pull $(BASE_IMAGE) || { \
	  echo "the base image $(BASE_IMAGE) is not here and cannot be pulled: name another Debian or Ubuntu image with" \
	    "BASE_IMAGE=, or do without Docker with RUNTIME=venv" >&2; exit 1; }
	@docker image inspect $(or $(IMAGE),alexmri) >/dev/null 2>&1 || echo "make: the first build takes minutes;" \
	  "installing the packages and exporting the layers print nothing for a minute each"

# Without DATA=, as under compose: ./data where it holds anything of yours, else made-up data.
OWN := $(wildcard data/*)
SOURCE := $(or $(DATA),$(if $(OWN),data,$(DEMO)))
train-venv: $(VENV)/.installed $(filter $(DEMO),$(SOURCE))
	@echo "make: training in the virtual environment $(VENV); RUNTIME=docker uses Docker"
ifeq ($(SOURCE),$(DEMO))
	@echo "############################################################################"
	@echo "#  There is no data in data/ and no DATA= was given: training on SYNTHETIC"
	@echo "#  pictures in $(DEMO). With your own: make train DATA=folder-of-class-folders"
	@echo "############################################################################"
endif
	$(BIN)/alexmri train --data "$(SOURCE)" --out "$(or $(OUT),runs/$(shell date +%Y%m%d-%H%M%S))" $(ARGS)

MODEL = $(or $(if $(OUT),$(OUT)/model),$(shell ls -td runs/*/model 2>/dev/null | head -1))
serve-venv: $(VENV)/.installed
	@test -n "$(MODEL)" || { echo "there is no model in runs/; first: make train"; exit 1; }
	$(BIN)/alexmri serve "$(MODEL)" --port $(or $(PORT),8080)

test: $(VENV)/.developing  ## run the tests, with coverage of the package
	$(BIN)/pytest --numprocesses auto --maxprocesses 4 --dist worksteal --cov --cov-report=term --cov-fail-under=90
	@echo "The tests of the image need a Docker engine and minutes: make test-docker"

test-fast: $(VENV)/.developing  ## run the tests that need no Docker, no training and no server
	$(BIN)/pytest -m "not slow" --numprocesses auto --maxprocesses 4 --dist worksteal --durations 5

test-docker: $(VENV)/.developing
	$(BIN)/pytest -m docker tests/docker tests/aws

conformance: image $(VENV)/.developing  ## check what the image promises a platform, by a simulator and by Amazon's own clients; needs a Docker engine
	@$(BIN)/python -m pytest -p tests.promises -q -o console_output_style=classic -m promise tests/docker; promises=$$?; \
	  $(MAKE) --no-print-directory conformance-clients && exit $$promises

# Side by side: a training of seconds keeps one core busy. The network is the one the SDKs share, with
# the label by which compose knows it as its own, so that the two do not make it at the same moment.
conformance-clients: image $(SDK2)/.installed $(SDK3)/.installed
	@docker network create --label com.docker.compose.network=sagemaker-local sagemaker-local >/dev/null 2>&1 || true
	@IMAGE=$${IMAGE:-alexmri} $(MAKE) --no-print-directory --jobs 2 --keep-going clients-sdk2 clients-sdk3; \
	  failed=$$?; docker network rm sagemaker-local >/dev/null 2>&1; exit $$failed

clients-sdk2 clients-sdk3: clients-%:
	@.venv-$*/bin/python -m pytest -p tests.promises tests/clients/test_low_level_client.py tests/clients/$* --ignore $(OWN_REQUESTS)

# What `alexmri aws` asks of SageMaker, executed by SDK 2's local client.
OWN_REQUESTS := tests/clients/sdk2/test_own_requests.py
aws-requests: image $(SDK2)/.installed
	@IMAGE=$${IMAGE:-alexmri} $(SDK2)/bin/python -m pytest -p tests.promises $(OWN_REQUESTS)

lint: $(VENV)/.developing  ## check style, types, spelling and which module may import which
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy --scripts-are-modules container/train container/serve container/evaluate container/preflight
	$(BIN)/lint-imports
	$(BIN)/codespell

reference: $(VENV)/.installed  ## write docs/reference.md anew from the code
	$(BIN)/python docs/reference.py

lock:  ## write the lock files anew from requirements.txt (needs uv)
	uv pip compile $(LOCK) requirements.txt -o requirements.lock
	awk '/^[a-z]/ {kept = !/^(torch|torchvision|triton|nvidia-.*|cuda-.*)==/} kept' requirements.lock > requirements-cpu.lock
	uv pip compile $(LOCK) requirements/dev.in -c requirements.lock -o requirements/dev.lock

bench: $(VENV)/.installed  ## measure how fast this machine trains: DATA=folder
	$(BIN)/python bench/train.py $(if $(DATA),--data "$(DATA)") $(ARGS)

gpu-check: $(VENV)/.installed  ## check training and serving on the GPU of this machine, in minutes: DATA=folder
	$(BIN)/python bench/gpu.py $(if $(DATA),--data "$(DATA)") $(ARGS)

clean:  ## remove the virtual environments and caches; data and runs stay
	rm -rf $(VENV) $(SDK2) $(SDK3) build .coverage .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis .schemathesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

LOCK := --quiet --no-strip-extras --universal --python-version 3.11 --fork-strategy fewest --generate-hashes --no-header --no-emit-index-url --no-emit-find-links

%/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' || { \
	  echo "alexmri needs Python 3.11, 3.12 or 3.13, $(PYTHON) is another: make $(MAKECMDGOALS) PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -m venv $* || { rm -rf $*; echo "no virtual environment; on Debian: apt-get install python3-venv"; exit 1; }

$(VENV)/.installed: requirements.lock pyproject.toml | $(VENV)/bin/python
	@echo "installing into $(VENV) (PyTorch with CUDA is 3 GB: this takes minutes, once)"
	$(BIN)/python -m pip install --quiet --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

$(VENV)/.developing: requirements/dev.lock | $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --require-hashes -r requirements/dev.lock
	@touch $@

$(SDK2)/.installed: requirements/sdk2.txt | $(SDK2)/bin/python
	@echo "installing SageMaker's SDK 2 into $(SDK2)"
	$(SDK2)/bin/python -m pip install --quiet -r requirements/sdk2.txt
	@touch $@

$(SDK3)/.installed: requirements/sdk3.txt requirements/sdk3-bare.txt | $(SDK3)/bin/python
	@echo "installing SageMaker's SDK 3 into $(SDK3)"
	$(SDK3)/bin/python -m pip install --quiet -r requirements/sdk3.txt
	$(SDK3)/bin/python -m pip install --quiet --no-deps -r requirements/sdk3-bare.txt
	@touch $@

$(DEMO): | $(VENV)/.installed
	$(BIN)/alexmri demo-data $(DEMO)
