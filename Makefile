PYTHON   ?= python3
VENV     ?= .venv
BIN      := $(VENV)/bin
DEV_VENV ?= .venv-dev
PACKAGES := client node broker relay protocol
ARGS     ?=

# Files, and folders too: a folder's time stamp changes when a file is added or removed.
SOURCES  := setup.cfg pyproject.toml $(shell find $(PACKAGES) -name '__pycache__' -prune -o \( -name '*.py' -o -name 'py.typed' -o -type d \) -print)

.PHONY: help demo test bench lint types check dev clean

help:      ## list the targets
	@grep -E '^[a-z]+: .*##' Makefile | sed -E 's/:.*## /\t/'

demo: $(VENV)/.installed  ## start a node, run the examples on it, compare their results
	$(BIN)/python examples/demo.py

test: $(VENV)/.installed-dev  ## all tests, against the installed package
	$(BIN)/pytest $(ARGS)

bench: $(VENV)/.installed  ## one table of figures beside their targets; ARGS=--quick for a short run
	$(BIN)/python -m bench $(ARGS)

lint: $(VENV)/.installed-dev  ## style and import order
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.installed-dev  ## mypy, strict
	$(BIN)/mypy

check: lint types test  ## lint, types and test

dev: $(DEV_VENV)/.installed  ## an editable install in .venv-dev, for an editor or a debugger

clean:     ## remove what make made
	rm -rf .venv .venv-dev build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis

# What was built of an older state is removed first: setuptools would install deleted modules
# from build/lib. (build/__editable__* belongs to `make dev`.)
$(VENV)/.installed: $(SOURCES) | $(BIN)/pip
	rm -rf build/lib build/bdist.*
	$(BIN)/pip install --quiet --disable-pip-version-check .
	touch $@

# The two stamps are of one environment: whatever changes, both installs are up to date.
$(VENV)/.installed-dev: $(SOURCES) | $(BIN)/pip
	rm -rf build/lib build/bdist.*
	$(BIN)/pip install --quiet --disable-pip-version-check '.[dev]'
	touch $@ $(VENV)/.installed

# Strict mode links file by file, so new files need a new install as well.
$(DEV_VENV)/.installed: $(SOURCES) | $(DEV_VENV)/bin/pip
	$(DEV_VENV)/bin/pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@

%/bin/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
	    echo "$(PYTHON) is missing or older than 3.10: install Python 3.10 or later," \
	         "or name it: make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { \
	    echo "$(PYTHON) can't make virtual environments: its venv or ensurepip is missing" \
	         "(Debian and Ubuntu: apt install python3-venv)" >&2; exit 1; }
	$(PYTHON) -m venv --clear $*
