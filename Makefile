# Everything happens in .venv, made here. PYTHON chooses the interpreter; LPKERNEL_CPP and the other build
# variables of setup.py are honoured when lpkernel is installed.

PYTHON ?= python3
BIN := .venv/bin
CPP_SOURCES := $(shell find csrc -name '*.h' -o -name '*.cpp')
INSTALL := $(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt
BUILD_INPUTS := pyproject.toml setup.py constraints.txt $(CPP_SOURCES)

.PHONY: demo test lint check bench clean

demo: .venv/.installed
	$(BIN)/python scripts/demo.py

test: .venv/.installed-test
	$(BIN)/python -m pytest

lint: .venv/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run -Werror $(CPP_SOURCES)

check: lint test

bench: .venv/.installed-test
	@mkdir -p out
	$(BIN)/python -m pytest bench --benchmark-only --benchmark-json out/bench.json --benchmark-columns min,median,rounds

clean:
	rm -rf .venv build dist out *.egg-info lpkernel/_build.json lpkernel/_cpu.*
	rm -rf .mypy_cache .pytest_cache .ruff_cache .hypothesis .benchmarks

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/.installed: .venv/bin/python $(BUILD_INPUTS)
	@echo "Installing lpkernel and what it needs into .venv; the first time takes minutes."
	$(INSTALL) -e .
	@touch $@

.venv/.installed-test: .venv/bin/python $(BUILD_INPUTS)
	@echo "Installing lpkernel and what it needs into .venv; the first time takes minutes."
	$(INSTALL) -e '.[test]'
	@touch .venv/.installed $@

.venv/.installed-dev: .venv/bin/python $(BUILD_INPUTS)
	@echo "Installing lpkernel and what it needs into .venv; the first time takes minutes."
	$(INSTALL) -e '.[dev]'
	@touch .venv/.installed .venv/.installed-test $@
