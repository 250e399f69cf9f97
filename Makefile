# Bazaruto Ops: every habit of this repository as one list. `make help` prints it.
.DEFAULT_GOAL := help
.PHONY: help up down status clean test test-hosts test-role test-site lab lab-down faults lint docs bench lock wheel bundle

BIN := .venv/bin
# Passed on to .ci/environment: which Python to make .venv with.
export PYTHON

help: ## Print this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-10s %s\n", $$1, $$2}' Makefile
	@echo
	@echo "PYTHON=python3.11 chooses the Python; BAZARUTO_HOME, BAZARUTO_SERVICE_PORT and BAZARUTO_CONTROL_PORT"
	@echo "let a second copy run beside the first."

up: ## From a clean clone to a running system with a proven backup; again: says what runs
	@.ci/environment control
	@$(BIN)/bazaruto up

down: ## Stop all of it; data stays in var/
	@if [ -x $(BIN)/bazaruto ]; then $(BIN)/bazaruto down; else echo "Nothing is set up here."; fi

status: ## Say what runs, and where
	@if [ -x $(BIN)/bazaruto ]; then $(BIN)/bazaruto status; else echo "Nothing is set up here: run make up."; fi

clean: ## Stop all of it and remove var/ with all its data, after asking
	@if [ -x $(BIN)/bazaruto ]; then $(BIN)/bazaruto down --remove-data; else echo "Nothing is set up here."; fi

test: lint ## Run the linters and every test this machine can run, and say what was left out
	$(BIN)/pytest -n 2 -m "not hosts"
	@.ci/molecule quick
	@echo "Left out: tests on single hosts, and all that Molecule's scenarios ask: make test-hosts (root) runs them."

test-hosts: ## Boot real hosts and test what runs there over SSH, then all Molecule scenarios (root; makes the image once)
	@.ci/environment dev
	$(BIN)/python -m tests.lab.image
	$(BIN)/pytest tests/hosts
	@.ci/molecule all

test-role: ## Test a role alone on a bare host, as in make test-role ROLE=redis (root)
	@.ci/molecule $(ROLE)

test-site: ## Build the whole site on a lab, ask it, and remove it (root; the quick part of scenario default)
	@.ci/molecule quick

lab: ## Boot eight Debian hosts with systemd, and mend what died (root; makes their image once: 1 minute, 500 MB)
	@.ci/environment dev
	@$(BIN)/python -m tests.lab up

lab-down: ## Remove the lab: no process, mount, link or file is left
	@.ci/environment dev
	@$(BIN)/python -m tests.lab down

lint: ## ruff, mypy strict, yamllint, ansible-lint (profile production), docs that drifted
	@.ci/environment dev
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/yamllint --strict .
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/ansible-lint --offline
	$(BIN)/python docs/generate.py --check

faults: ## Kill, freeze, starve and confuse everything beside real runs; print what their records are worth
	@.ci/environment dev
	$(BIN)/python -m tests.faults

docs: ## Write docs/reference/ anew from the code
	@.ci/environment dev
	$(BIN)/python docs/generate.py

bench: ## Measure, as ratios of two things in one run
	@.ci/environment dev
	$(BIN)/python -m tests.bench

lock: ## Resolve pyproject.toml into app/requirements/*.txt (hashes, no registry's address)
	@.ci/environment dev
	.ci/lock

wheel: ## Build the package into dist/
	@.ci/environment dev
	$(BIN)/python -m hatchling build -t wheel

bundle: ## Write what hosts install without internet, and a control node's, into dist/*.bundle.tar
	@.ci/environment control
	@$(BIN)/python .ci/bundle
