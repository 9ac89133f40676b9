# `make demo` and `make test` do all their own set-up on a fresh Debian 12/13 or Ubuntu 24.04.
PYTHON ?= python3
VENV ?= .venv
FUZZ_SECONDS ?= 60
BIN = $(VENV)/bin
export PYTHON VENV

.PHONY: help setup demo test lint bench fuzz

help:
	@echo "make setup   everything that this machine needs; quick when done"
	@echo "make demo    two sessions in two sandboxes, with no key and no network"
	@echo "make test    the tests"
	@echo "make lint    ruff and mypy"
	@echo "make bench   the promised speeds, against their yardsticks"
	@echo "make fuzz    what comes from a guest, made up by atheris: FUZZ_SECONDS=60 for each harness"

setup:
	@actors/setup.sh

demo: setup
	@$(BIN)/hourglass demo

# Two at a time, since much of it waits: for leases to run out, for processes to end. Chaos alone: it kills every host of
# this machine.
test: setup
	@$(BIN)/pytest -m "not chaos" --numprocesses 2 --dist loadfile
	@$(BIN)/pytest -m chaos

# Needs no sandbox, so it needs no root.
lint:
	@actors/setup.sh venv
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

bench: setup
	@$(BIN)/hourglass bench

# Needs no sandbox, so it needs no root. What it finds and what it has tried stay in .fuzz.
fuzz:
	@actors/setup.sh venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[fuzz]' -c constraints.txt
	@$(BIN)/python -m tests.fuzz --seconds $(FUZZ_SECONDS)
