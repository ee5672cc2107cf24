# Every task of this project is one target; `make help` lists them. Nothing but python3, make, git and a C
# compiler needs to be there: .venv is made first by whatever needs it.

# The first Python that is new enough, else python3, which then says so; or `make PYTHON=... run`.
FITS := import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14))
PYTHON ?= $(shell for python in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$python -c '$(FITS)' 2>/dev/null && echo $$python && exit; done; echo python3)
BIN := .venv/bin
SOURCES := gateway engine_config benchmarks scripts tests

.DEFAULT_GOAL := help
.PHONY: help run install test cover soak bench check format lock notices docs clean

help: ## list the targets
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1	\2/p' $(MAKEFILE_LIST) | expand -t 18

# `exec` leaves no shell between the terminal and pagegate: a Ctrl-C reaches it once.
run: ## install, then start a small model behind the gateway (ARGS="--port 9000")
	@$(PYTHON) scripts/install.py auto && exec $(BIN)/pagegate up $(ARGS)

install: ## make .venv (LOCK=cpu, gpu, gateway or dev)
	@$(PYTHON) scripts/install.py $(LOCK)

test: ## install, then run every test, the real engine included (ARGS="-k name")
	@$(PYTHON) scripts/install.py dev
	@$(BIN)/python -m pytest $(ARGS)

cover: ## install, then show which lines and branches the tests without an engine reach
	@$(PYTHON) scripts/install.py dev
	@$(BIN)/python -m pytest --cov --cov-report=term tests/unit tests/gateway tests/faults tests/contract $(ARGS)

soak: ## install, then load a gateway for minutes and see whether it stays what it was (ARGS="--minutes 5")
	@$(PYTHON) scripts/install.py dev
	@$(BIN)/python -m tests.soak $(ARGS)

bench: ## install, then measure the gateway beside others (ARGS="--quick", ARGS=--list)
	@$(PYTHON) scripts/install.py dev
	@$(BIN)/python -m benchmarks $(ARGS)

check: ## formatting, lint, types, and who imports whom
	@$(PYTHON) scripts/install.py dev
	@$(BIN)/ruff format --check $(SOURCES)
	@$(BIN)/ruff check $(SOURCES)
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-logo

format: ## format the code and mend what lint can mend
	@$(PYTHON) scripts/install.py dev
	@$(BIN)/ruff format $(SOURCES)
	@$(BIN)/ruff check --fix $(SOURCES)

lock: ## pin every dependency anew (ARGS=--upgrade for the newest)
	@$(PYTHON) scripts/install.py dev
	@$(BIN)/python -m scripts.lock $(ARGS)

notices: ## write THIRD_PARTY_NOTICES.md from what is installed
	@$(PYTHON) scripts/install.py dev
	@$(BIN)/python -m scripts.notices

docs: ## write the reference pages under docs/ from the models
	@$(PYTHON) scripts/install.py dev
	@$(BIN)/python -m scripts.reference

clean: ## remove what was made here; downloads stay in the installer's own cache
	@rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis .coverage htmlcov build dist
	@find $(SOURCES) -name __pycache__ -prune -exec rm -rf {} +
