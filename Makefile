PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/installed
# The CPU build that is quick to install; the package itself takes any torch >= 2.6
TORCH ?= torch==2.13.0

.PHONY: install demo test contract lint types clean

install: $(STAMP)

$(STAMP): pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check "$(TORCH)"
	$(BIN)/pip install --quiet --disable-pip-version-check -e ".[test,lint]"
	touch $@

demo: install
	$(BIN)/python -m benchmarks.demo demo

test: install
	$(BIN)/python -m pytest

# What fMRIPrep does with our masks, by its own parts; they take minutes to install
contract: install
	$(BIN)/pip install --quiet --disable-pip-version-check -e ".[fmriprep-contract]"
	$(BIN)/python -m pytest tests/test_fmriprep_contract.py

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: install
	$(BIN)/mypy

clean:
	rm -rf demo .venv
