# `make demo` and `make test` install everything they need; they require Linux and Python 3.11 or later only.

PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin

.DEFAULT_GOAL := help
.PHONY: help demo test kubernetes node soak lint docs fast slow chart cluster cluster-down clean

help: ## List the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/'

$(VENV)/.ready: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Shoal needs Python 3.11 or newer; name one: make PYTHON=python3.12 ..." >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || { echo "no virtual environment could be made; on Debian or Ubuntu: apt-get install python3-venv" >&2; exit 1; }
	@echo "installing Shoal, PyTorch and the examples' data into $(VENV) (a few minutes the first time)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade pip
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[trainer,local,operator,examples,dev]'
	@touch $@

demo: $(VENV)/.ready ## Train an elastic job on this machine, kill processes, print the account of every sample
	$(BIN)/python examples/demo.py

test: $(VENV)/.ready ## Run every tier of tests that can run on this machine (SHOAL_TIERS=all: a missing one fails)
	$(BIN)/python -m tests.tiers

fast: $(VENV)/.ready ## Run the fast tests
	$(BIN)/python -m tests.tiers fast

slow: $(VENV)/.ready ## Run the tests with real jobs and kills
	$(BIN)/python -m tests.tiers slow

kubernetes: $(VENV)/.ready ## Run the tests on a real Kubernetes with hollow nodes; it is built once from its Go modules
	$(BIN)/python -m tests.tiers cluster

node: $(VENV)/.ready ## Run the tests with jobs in the pods of a real node (needs root)
	$(BIN)/python -m tests.tiers node

soak: $(VENV)/.ready ## Run the property tests with SHOAL_SOAK times as many random cases (default 17; one to two hours)
	SHOAL_SOAK=$${SHOAL_SOAK:-17} $(BIN)/python -m pytest -m 'hypothesis and not cluster' -n 2 --dist worksteal -o timeout=7200

lint: $(VENV)/.ready ## Check format, style, types, import contracts and the links of the documentation
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/mkdocs build

docs: $(VENV)/.ready ## Build the documentation as a site in build/site; a broken link or anchor fails
	$(BIN)/mkdocs build

chart: $(VENV)/.ready ## Build the Helm chart in deploy/helm/shoal from the manifests (needs kubectl)
	$(BIN)/python -m deploy.helm.build

cluster: $(VENV)/.ready ## Start a real Kubernetes with Shoal on this machine (needs Go and openssl; root for pods that train)
	@$(BIN)/python -m tests.cluster up

cluster-down: $(VENV)/.ready ## Stop that Kubernetes and remove it
	@$(BIN)/python -m tests.cluster down

clean: ## Remove the virtual environment and the caches of tools
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
