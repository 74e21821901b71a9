# Two commands do everything: `make serve` and `make test`. `make help` lists the rest.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STORE ?= var/store
API ?= unix:$(CURDIR)/var/api.sock
PORTAL ?= 127.0.0.1:3260
PREFIX ?= /opt/blockyard
SYSTEM_PYTHON ?= /usr/bin/python3
export BLOCKYARD_API ?= $(API)

.PHONY: help setup serve test check unit integration bench soak system install uninstall clean

help: ## List the commands
	@awk -F':.*## ' '/^[a-z]+:.*## /{printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(VENV)/.done ## Create .venv with the blockyard command

$(VENV)/.done: pyproject.toml
	@tools/python-environment $(PYTHON) $(VENV)
	@touch $@

serve: setup ## Run a target with an open demo group on 127.0.0.1:3260
	@tools/serve-demo $(BIN)/blockyard $(STORE) $(PORTAL) $(API)

check: setup ## The inner loop, under 2 minutes: format, lint, types, layers, unit tests
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/pytest -q -m "not slow"

unit: setup ## All tests that need no guest
	$(BIN)/pytest -q

test: setup system ## Everything once, real initiators included (under 25 minutes)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/pytest tests integration

integration: setup system ## The scenarios with real initiators only
	$(BIN)/pytest integration

bench: setup ## Measure this machine; NAME=peers, snapshots, steady, lateness: docs/performance.md
	@$(if $(filter peers,$(NAME)),tools/system-packages bench/debian-packages.txt,true)
	$(BIN)/python -m bench$(if $(NAME),.$(NAME)) $(OPTIONS)

soak: setup system ## Repeats and hours: make soak NAME=crash (evidence goes to docs/evidence)
	$(BIN)/python -m bench.soak $(NAME)

system: ## Install the Debian packages that the tests need
	@tools/system-packages integration/debian-packages.txt

install: setup ## Install the services: make install [DESTDIR=] [PREFIX=/opt/blockyard] [SYSTEM_PYTHON=/usr/bin/python3]
	@tools/install "$(DESTDIR)" "$(PREFIX)" "$(SYSTEM_PYTHON)" "$(BIN)/pip"

uninstall: ## Take them away; configuration and data stay
	@tools/uninstall "$(DESTDIR)" "$(PREFIX)"

clean: ## Remove what setup made; the demo store under var/ stays
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
