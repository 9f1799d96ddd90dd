# Every target does its own set-up. `make help` lists them.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# Ray starts a process an actor; without compiled bytecode each of them compiles thousands of modules again.
export PYTHONDONTWRITEBYTECODE :=
export RAY_USAGE_STATS_ENABLED := 0
export RAYGEN_ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help quickstart test quick nightly faults lint types imports docs check lock bench clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sort | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

quickstart: $(READY) ## draw faces, generate 1,024 more on a local Ray, score them, write runs/quickstart/report.html
	$(BIN)/raygen quickstart $(RAYGEN_ARGS)

# One process runs all tests that share a Ray, and begins with them; the others take a file at a time. Tests of Ray
# wait most of the time, so there is one process more than cores.
TOGETHER := --numprocesses=$(shell expr $$(getconf _NPROCESSORS_ONLN) + 1) --dist=loadgroup

test: $(READY) ## run the tests
	$(BIN)/pytest $(TOGETHER) $(RAYGEN_ARGS)

quick: $(READY) ## run the tests that start no Ray
	$(BIN)/pytest -m "not ray" $(TOGETHER) $(RAYGEN_ARGS)

# The oldest versions of the ranges in pyproject.toml; torch and the others are those of the lock.
OTHER := transformers==4.57.3 diffusers==0.35.2 huggingface_hub==0.36.0 tokenizers==0.22.1 safetensors==0.6.2

# Packages that read exports. They pin old versions of others, so they come without these and lie beside the environment.
DATA_READERS := webdataset==1.0.2 braceexpand==0.1.7 mosaicml-streaming==0.13.0 catalogue==2.0.10 brotli==1.2.1 \
	cramjam==2.14.0 python-snappy==0.7.3 zstd==1.5.7.2 litdata==0.2.76 lightning-utilities==0.15.3 obstore==0.12.1
# numpy 1.23 has no wheels for Python 3.12 and later: there the test is skipped by name.
MXNET := mxnet==1.9.1 numpy==1.23.5 graphviz==0.21 requests urllib3 idna certifi charset-normalizer

nightly: $(READY) ## run the tests that take minutes, or need other versions of packages (installed beside the environment)
	$(BIN)/uv pip install --quiet --python $(BIN)/python --target $(VENV)/other --no-deps $(OTHER)
	$(BIN)/uv pip install --quiet --python $(BIN)/python --target $(VENV)/trackers mlflow==3.17.2 wandb==0.31.0
	$(BIN)/uv pip install --quiet --python $(BIN)/python --target $(VENV)/dlib --no-deps dlib-bin==20.0.1.post1 face_recognition_models==0.3.0
	$(BIN)/uv pip install --quiet --python $(BIN)/python --target $(VENV)/readers --no-deps $(DATA_READERS)
	-$(BIN)/uv pip install --quiet --python $(BIN)/python --target $(VENV)/readers/mxnet-1.9.1 --no-deps --only-binary :all: $(MXNET)
	RAYGEN_NIGHTLY=1 RAYGEN_OTHER_TRANSFORMERS=$(VENV)/other RAYGEN_READERS=$(VENV)/readers RAYGEN_DLIB=$(VENV)/dlib RAYGEN_TRACKERS=$(VENV)/trackers $(BIN)/pytest -m nightly $(RAYGEN_ARGS)

faults: $(READY) ## try a fault at every operation of every command; takes hours
	RAYGEN_FAULTS_EVERY=1 $(BIN)/pytest tests/faults $(RAYGEN_ARGS)

lint: $(READY) ## ruff: lint and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY) ## mypy, strict
	$(BIN)/mypy

imports: $(READY) ## import-linter: the layers of the house
	$(BIN)/lint-imports

docs: $(READY) ## build the documentation into site/; a broken link is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

check: lint types imports docs test ## everything that CI runs

bench: $(READY) ## the benchmarks of docs/results.md that need no GPU
	$(BIN)/python benchmarks/throughput.py

lock: $(VENV)/.uv ## write requirements.lock anew from the ranges in pyproject.toml
	$(BIN)/uv pip compile pyproject.toml --all-extras --universal --generate-hashes --no-header --quiet --upgrade -o requirements.lock

clean: ## remove the virtual environment and what the quickstart made
	rm -rf $(VENV) runs/quickstart

$(VENV)/.uv:
	$(PYTHON) -c 'import sys; assert (3, 11) <= sys.version_info[:2] < (3, 14), "raygen needs Python 3.11, 3.12 or 3.13"'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check 'uv>=0.5'
	touch $@

$(READY): $(VENV)/.uv requirements.lock pyproject.toml
	$(BIN)/uv pip install --quiet --python $(BIN)/python --compile-bytecode --require-hashes -r requirements.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation -e .
	touch $@
