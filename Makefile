# Two commands do all the set-up on a machine that has Python (3.11 to 3.13) and make: `make demo` and `make test`.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
JOBS ?= $(shell $(PYTHON) -c "import os; print(min(3, os.cpu_count() or 1))")

.PHONY: demo test quick lint format clean

demo: $(VENV)/.installed
	$(BIN)/detbench run quickstart --jobs $(JOBS)
	$(BIN)/detbench report quickstart -o site
	@echo "Open site/index.html in a browser."

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -n $(JOBS)

quick: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -n $(JOBS) -m "not slow"

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) site dist build

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -c "import sys; assert (3, 11) <= sys.version_info < (3, 14), 'detbench needs Python 3.11 to 3.13, this is ' + sys.version"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[dev]"
	@touch $@
