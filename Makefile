# `make demo` and `make test` do all their set-up themselves: Linux and Python 3.11 or newer are all that is needed.

PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin

.DEFAULT_GOAL := help
.PHONY: help demo test kubernetes node soak lint docs fast slow cluster cluster-down clean

help: ## What there is
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/'

$(VENV)/.ready: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Shoal needs Python 3.11 or newer; name one: make PYTHON=python3.12 ..." >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || { echo "no virtual environment could be made; on Debian or Ubuntu: apt-get install python3-venv" >&2; exit 1; }
	@echo "installing Shoal, PyTorch and the examples' data into $(VENV) (a few minutes the first time)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade pip
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[trainer,local,operator,examples,dev]'
	@touch $@

demo: $(VENV)/.ready ## A real elastic training on this machine, with kills, and an account of every sample
	$(BIN)/python examples/demo.py

test: $(VENV)/.ready ## Every tier of tests that this machine allows (SHOAL_TIERS=all: a missing one fails)
	$(BIN)/python -m tests.tiers

fast: $(VENV)/.ready ## The fast tests alone
	$(BIN)/python -m tests.tiers fast

slow: $(VENV)/.ready ## The tests with real jobs and kills alone
	$(BIN)/python -m tests.tiers slow

kubernetes: $(VENV)/.ready ## The tests on a real Kubernetes with hollow nodes alone; it is built from its Go modules once
	$(BIN)/python -m tests.tiers cluster

node: $(VENV)/.ready ## The tests with jobs in the pods of a real node alone (needs root)
	$(BIN)/python -m tests.tiers node

soak: $(VENV)/.ready ## The tests of properties with many more random cases, for an hour or two (SHOAL_SOAK=17: so many times more)
	SHOAL_SOAK=$${SHOAL_SOAK:-17} $(BIN)/python -m pytest -m 'hypothesis and not cluster' -n 2 --dist worksteal -o timeout=7200

lint: $(VENV)/.ready ## Format, style, types, walls and links
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/mkdocs build

docs: $(VENV)/.ready ## The documentation as a site, in build/site; a broken link or anchor fails
	$(BIN)/mkdocs build

cluster: $(VENV)/.ready ## A real Kubernetes with Shoal in it, on this machine (needs Go and openssl; root for pods that train)
	@$(BIN)/python -m tests.cluster up

cluster-down: $(VENV)/.ready ## End it; nothing is left
	@$(BIN)/python -m tests.cluster down

clean: ## Remove the environment and what tools left
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
