PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/installed
TOOLS := .venv/installed-tools
# On Linux PyPI's wheel brings CUDA; README names the small build. The package takes any >= 2.6
TORCH ?= torch==2.13.0

.PHONY: install tools demo test contract lint types docs clean

install: $(STAMP)

$(STAMP): pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check "$(TORCH)"
	$(BIN)/pip install --quiet --disable-pip-version-check -e .
	touch $@

tools: $(TOOLS)

$(TOOLS): $(STAMP)
	$(BIN)/pip install --quiet --disable-pip-version-check -e ".[test,lint,docs]"
	touch $@

demo: install
	$(BIN)/python -m singlestrip_bids.demo demo

test: tools
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist worksteal

# What fMRIPrep does with our masks, by its own parts; they take minutes to install
contract: tools
	$(BIN)/pip install --quiet --disable-pip-version-check -e ".[fmriprep-contract]"
	$(BIN)/python -m pytest tests/bids/test_fmriprep_contract.py

lint: tools
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: tools
	$(BIN)/mypy

# A website in site/; any warning is an error
docs: tools
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

clean:
	rm -rf demo site .venv
