# Two commands do everything: `make run` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DATA ?= data

.PHONY: run test check format

$(VENV)/run.stamp: setup.cfg setup.py
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --editable .
	touch $@

$(VENV)/test.stamp: $(VENV)/run.stamp
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[test]'
	touch $@

run: $(VENV)/run.stamp
	$(BIN)/raftkv dev --nodes 3 --shards 4 --replicas 3 --http-port 8000 --data-dir $(DATA)

check: $(VENV)/test.stamp
	$(BIN)/ruff format --check raftkv tests setup.py
	$(BIN)/ruff check raftkv tests setup.py
	$(BIN)/mypy

test: check
	tests/install-tools
	$(BIN)/pytest

format: $(VENV)/test.stamp
	$(BIN)/ruff format raftkv tests setup.py
	$(BIN)/ruff check --fix raftkv tests setup.py
