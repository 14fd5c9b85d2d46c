# `make train` and `make test` set everything up themselves; nothing but python3 (with pip) and make is needed.
SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help install train runs bench bench-compare test test-fast test-faults lint clean

UV := $(or $(shell command -v uv),.uv/bin/uv)
PYTHON := .venv/bin/python
ARGS ?=

help:  ## show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-13s %s\n", $$1, $$2}'

.uv/bin/uv:
	@echo "fetching uv into .uv/"
	@python3 -m pip install --quiet --target .uv uv

# The stamp is newer than pyproject.toml only when everything in it is installed.
.venv/.installed: pyproject.toml | $(UV)
	@[ -x $(PYTHON) ] || $(UV) venv --quiet --python '>=3.10' .venv
	$(UV) pip install --quiet --python $(PYTHON) -e '.[all,dev]'
	@touch $@

install: .venv/.installed  ## make the virtual environment .venv (with uv, fetched when missing)

train: install  ## train the tuned run on the bundled digits; ARGS="trainer.seed=1 ..." overrides
	$(PYTHON) train.py experiment=digits $(ARGS)

runs: install  ## serve a page over all runs; ARGS="folder=outputs/mine port=8080" overrides
	$(PYTHON) scripts/runs.py $(ARGS)

bench: install  ## time training steps and more into outputs/benchmark.json; ARGS="step --rounds=3" chooses
	@mkdir -p outputs
	$(PYTHON) scripts/benchmark.py $(ARGS) --json=outputs/benchmark.json

bench-compare: install  ## show every ratio of it that is 10 % below that of the committed results
	$(PYTHON) scripts/benchmark.py compare scripts/results/benchmark.json outputs/benchmark.json

# A process for each core, and each file of tests in one of them.
PYTEST := $(PYTHON) -m pytest -n auto --dist loadfile

test: install  ## run every test
	$(PYTEST) $(ARGS)

test-fast: install  ## run the tests that need no whole training run
	$(PYTEST) -m "not slow" $(ARGS)

test-faults: install  ## run the tests in which something breaks
	$(PYTEST) -m faults $(ARGS)

lint: install  ## ruff: rules and format
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .

clean:  ## remove the environment, caches and build leftovers (outputs/ stays)
	rm -rf .venv .uv build *.egg-info .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
