# Everything happens in .venv, which is created here. PYTHON chooses the interpreter; LPKERNEL_CPP and the other
# build variables of setup.py are honoured when lpkernel is installed.

PYTHON ?= python3
comma := ,
BIN := .venv/bin
CPP_SOURCES := $(shell find csrc -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh')
CPP_TESTS := $(shell find tests/emulation tests/kernels -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh')
INSTALL := $(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt
BUILD_INPUTS := pyproject.toml setup.py constraints.txt $(CPP_SOURCES)

.PHONY: demo gallery table1 figure4 test thorough rungs lint check bench sanitize gpu-check kernel-report dist clean

demo: .venv/.installed
	$(BIN)/python scripts/demo.py

gallery: .venv/.installed
	$(BIN)/python scripts/gallery.py

# The paper's table 1, an hour or more; less with e.g. make table1 TABLE1='-n 100 --seeds 1 --features latents'.
table1: .venv/.installed
	$(BIN)/python scripts/table1.py $(TABLE1)

# The paper's figure 4; pass options as in FIGURE4='-n 100'.
figure4: .venv/.installed-test
	$(BIN)/python scripts/figure4.py $(FIGURE4)

# One worker per core, each about 1.5 GB; a file's tests run on one worker, the longest file first (tests/conftest.py).
PYTEST = $(BIN)/python -m pytest -n auto --maxprocesses 8 --dist loadfile --no-loadscope-reorder

test: .venv/.installed-test
	$(PYTEST) -m 'not thorough'

# The tests that `make test` leaves out: what nvcc and Triton make of the GPU kernels, emulated; sanitizers; the emulator
# itself; kernels for aarch64; whole wheels; the demo in a browser.
thorough: .venv/.installed-test
	$(PYTEST) -m thorough

# All tests of the CUDA kernels, on their source and on what nvcc makes of it; `make check` runs a part of them.
rungs: .venv/.installed-test
	$(PYTEST) --all-rungs \
	    tests/test_cuda_scan.py tests/test_cuda_steps.py tests/test_cuda_walk.py tests/test_cuda_refine.py \
	    tests/test_cuda_topk.py tests/test_cuda_screen.py tests/test_topk_floats.py tests/test_modes_backends.py

lint: .venv/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run -Werror $(CPP_SOURCES) $(CPP_TESTS)

check: lint test thorough

bench: .venv/.installed-test
	@mkdir -p out
	$(BIN)/python -m pytest bench --benchmark-only --benchmark-json out/bench.json --benchmark-columns min,median,rounds

# The tests of the C++ code under AddressSanitizer and UndefinedBehaviorSanitizer, then under ThreadSanitizer.
SANITIZED = LPKERNEL_CPP=1 LPKERNEL_CUDA=0 LPKERNEL_SANITIZE=$(1) $(BIN)/python setup.py --quiet \
    build --build-base build/sanitize/$(2) --build-lib build/sanitize/$(2)/lib && \
    LD_PRELOAD="$$(gcc -print-file-name=lib$(2).so) $$(gcc -print-file-name=libstdc++.so)" \
    ASAN_OPTIONS=detect_leaks=0 PYTHONPATH=build/sanitize/$(2)/lib LPKERNEL_REQUIRE_BACKENDS=cpp \
    $(BIN)/pytest -q -p no:cacheprovider -n 2 --dist loadfile $(3) -k cpp

sanitize: .venv/.installed-test
	$(call SANITIZED,address$(comma)undefined,asan,tests/test_cpp.py tests/test_scan.py tests/test_masked_topk.py \
	    tests/test_topk_floats.py tests/test_refine.py)
	$(call SANITIZED,thread,tsan,tests/test_cpp.py tests/test_scan.py tests/test_refine.py)

# What only a GPU can check; without one it says what was not run, and fails. Some parts alone:
# make gpu-check PARTS='speed'.
gpu-check:
	$(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON)) scripts/gpu_check.py $(PARTS)

# Registers, occupancy, instructions and roofline estimates of the GPU kernels, without a GPU; needs nvcc
# and Triton.
kernel-report: .venv/.installed-test
	PYTHONPATH=tests $(BIN)/python scripts/kernel_report.py

# The source distribution, and from it a wheel for this machine; see Releasing in CONTRIBUTING.md.
dist: .venv/.installed-dev
	rm -rf dist
	$(BIN)/python -m build
	$(BIN)/twine check --strict dist/*

clean:
	rm -rf .venv build dist out *.egg-info lpkernel/_build.json lpkernel/_cpu.* lpkernel/_cuda.*
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
