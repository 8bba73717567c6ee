# The two commands of the README are `make demo` and `make test`; `make check` is lint, types and import contracts.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

# torch makes its compile cache's directory on import; beside the rest of what a clone makes, not in the temporary directory.
export TORCHINDUCTOR_CACHE_DIR ?= $(CURDIR)/$(VENV)/torchinductor

.PHONY: demo test check soak clean

demo: $(VENV)/.installed-demo
	$(BIN)/python examples/digits_lightning.py

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest

soak: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -m soak -s

check: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Headway needs Python 3.11 or newer, $(PYTHON) is `$(PYTHON) --version 2>&1`; try: make PYTHON=python3.12 demo" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

# torch first and alone: with it in place a range that it satisfies installs nothing more.
$(VENV)/.installed-demo: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) torch
	$(PIP) -e '.[lightning,examples]'
	@touch $@

$(VENV)/.installed-dev: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) torch
	$(PIP) -e '.[lightning,examples,dev]'
	@touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
