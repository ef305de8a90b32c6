# The doors: setup, demo, test, test-ci, test-all, check. Each works from a fresh checkout with Python 3.11+ and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DEMO ?= runs/demo
PICTURES ?= runs/pictures

.PHONY: setup demo test test-ci test-all check format pictures clean

setup: $(STAMP)

# torch goes first and by its exact version: that is how a CPU build lying in a local wheel folder is picked
# before another package's range draws in the CUDA build.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "$$(grep '^torch==' constraints.txt)" -c constraints.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[test]"
	touch $(STAMP)

demo: setup
	$(BIN)/python -m ray_jobs demo --demo.output $(DEMO)

# Two workers (tests/conftest.py divides the tests), and one thread each for two processors.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

test: setup
	$(PYTEST) -m "not slow and not long"

# What takes many seconds each, too: further jobs, whole pages in a browser.
test-ci: setup
	$(PYTEST) -m "not slow"

# What takes minutes each, too: clusters of several nodes, kills at random moments, the whole ladder.
test-all: setup
	$(PYTEST)

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# README's and docs' pictures anew: a larger demo, its comparison, and its report in a browser.
pictures: setup
	$(BIN)/python -m ray_jobs demo --demo.output $(PICTURES) --demo.samples 1000
	$(BIN)/python benchmarks/pictures.py $(PICTURES) docs

clean:
	rm -rf $(VENV) runs .pytest_cache .mypy_cache .ruff_cache *.egg-info
