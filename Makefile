# Two commands do everything: `make run` and `make test`.
#
# They need Linux, Python 3.11 or newer with venv, and the network the first time.
VENV := .venv
BIN := $(VENV)/bin
DATA ?= data
HTTP_PORT ?= 8000
SOURCES := raftkv tests setup.py
# Tests at a time: each takes about a core, and clusters are slow when they must share it.
TEST_JOBS ?= 2
SOAK_MINUTES ?= 120
SOAK_SEEDS ?= 0:3000

# The first of these that is new enough; `make run PYTHON=...` decides for another.
PYTHON ?= $(shell for python in python3 python3.14 python3.13 python3.12 python3.11; do \
	command -v $$python >/dev/null && \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && \
	echo $$python && break; done)

.PHONY: run test soak check validate-deploy format docs clean

run: $(VENV)/run.stamp
	@exec $(BIN)/raftkv dev --nodes 3 --shards 4 --replicas 3 --http-port $(HTTP_PORT) --data-dir $(DATA)

test: check
	tests/install-tools
	$(BIN)/pytest -n $(TEST_JOBS)

soak: $(VENV)/test.stamp
	tests/install-tools
	$(BIN)/raftkv sim --seeds $(SOAK_SEEDS) --keep-going
	$(BIN)/python tests/chaos/soak.py --minutes $(SOAK_MINUTES)

check: $(VENV)/test.stamp
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/mypy

validate-deploy: $(VENV)/test.stamp
	tests/install-tools
	deploy/validate

format: $(VENV)/test.stamp
	$(BIN)/ruff format $(SOURCES)
	$(BIN)/ruff check --fix $(SOURCES)

docs: $(VENV)/docs.stamp
	$(BIN)/zensical build --strict --clean

clean:
	rm -rf $(VENV) build dist site .cache *.egg-info .mypy_cache .ruff_cache .hypothesis

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "raftkv needs Python 3.11 or newer, and finds none: install one, or say make PYTHON=/path/to/python" >&2; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' || { echo "$(PYTHON) has no venv: on Debian and Ubuntu, apt-get install python3-venv" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/run.stamp: setup.cfg setup.py | $(BIN)/python
	@echo "Installing raftkv and what it needs into $(VENV): about a minute, this once"
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[server]'
	@touch $@

$(VENV)/test.stamp: setup.cfg setup.py | $(BIN)/python
	@echo "Installing raftkv and what its tests need into $(VENV): a few minutes, this once"
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[test]'
	@touch $@ $(VENV)/run.stamp

$(VENV)/docs.stamp: setup.cfg setup.py | $(BIN)/python
	@echo "Installing what the documentation's site needs into $(VENV)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[docs]'
	@touch $@
