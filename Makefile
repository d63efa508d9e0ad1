# Needs git, make and Python 3.11 or newer; everything else lands in .venv.
# Without a GPU, have pip find PyTorch's builds for the CPU: they are gigabytes smaller.

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/installed
PIP_INSTALL := $(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt

# The first interpreter that is new enough; `make setup PYTHON=/path/to/python` overrules it.
PYTHON ?= $(shell for python in python3.11 python3.12 python3.13 python3; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
	&& { echo $$python; break; }; done)

# Two processes, each test file whole in one: files share swarms of processes between tests.
PYTEST_ARGS ?= -n 2 --dist loadfile

.PHONY: help setup demo simulate natlab test lint bench

help: ## list these targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-9s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(STAMP) ## install gennode and what it needs into .venv, once

demo: setup ## a swarm on this machine answers, and survives a kill
	$(BIN)/gennode demo

simulate: setup ## seeded stories of failing swarms, faster than life
	$(BIN)/gennode simulate

natlab: setup ## a small internet with routers of several kinds, until Ctrl-C; needs root
	$(BIN)/python -m localnet.commands up

test: lint ## everything that a change must pass
	$(BIN)/python -m pytest $(PYTEST_ARGS)

lint: setup ## style, types and the direction of imports
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: setup ## every figure, in short; each prints a table and one line of JSON
	@set -e; for file in bench/[!_]*.py; do \
		name=$$(basename $$file .py); echo "== $$name"; \
		$(BIN)/python -m bench.$$name --quick; done

# torch goes in first and alone: asked for later, as someone's dependency, pip would weigh up
# other builds of it, gigabytes each.
$(STAMP): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "gennode needs Python 3.11 or newer, and found none:" \
		"install it, or name one: make setup PYTHON=/path/to/python" >&2; exit 1; }
	@echo "== setup 1/3: $(VENV) with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv $(VENV) || { echo "on Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }
	@echo "== setup 2/3: torch"
	@$(PIP_INSTALL) $$(grep '^torch==' constraints.txt)
	@echo "== setup 3/3: gennode and the rest"
	@$(PIP_INSTALL) -e '.[dev]'
	@touch $@
