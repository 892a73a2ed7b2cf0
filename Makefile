# SPDX-License-Identifier: Apache-2.0
# What a fresh machine needs: Python 3.10 or later, a C++20 compiler, make, git. Everything else
# (torch, cmake, ninja, ...) goes into .venv, which every target makes by itself.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
ARGS ?=
JOBS ?= 2
TORCH := torch==2.13.0

export PATH := $(CURDIR)/$(BIN):$(PATH)
export PIP_DISABLE_PIP_VERSION_CHECK := 1

CXX_SOURCES := CMakeLists.txt pyproject.toml $(wildcard cmake/*.cmake) \
  $(shell find csrc -type f -not -name '*.md' 2>/dev/null)

.DEFAULT_GOAL := help
.PHONY: help build test demo bench lint docs clean

help:
	@echo "make build              environment in .venv, and the library built into it"
	@echo "make test [ARGS=...]    the Python tests; ARGS go to pytest"
	@echo "make demo [ARGS=--fast] a real model pruned, converted, checked and measured"
	@echo "make bench [ARGS=...]   benchmarks, into bench/results/"
	@echo "make lint               ruff and mypy"
	@echo "make docs               the API reference, into build/docs"
	@echo "make clean              removes what was built; keeps .venv"

# torch comes first and alone: with the version fixed, nothing installed later can replace it.
$(VENV)/.torch:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo "Python 3.10 or later is needed; set PYTHON=..."; exit 1; }
	@echo "[1/3] $(VENV): $(TORCH) (some minutes)"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/pip install -q --upgrade pip
	@$(BIN)/pip install -q "$(TORCH)"
	@touch $@

$(VENV)/.tools: $(VENV)/.torch
	@echo "[2/3] $(VENV): build tools"
	@$(BIN)/pip install -q "scikit-build-core>=0.10" "pybind11>=2.13" "cmake>=3.20" ninja
	@touch $@

# Editable: a change of a Python file needs no new build. The log is shown when the build fails.
$(VENV)/.built: $(VENV)/.tools $(CXX_SOURCES)
	@echo "[3/3] sparsekern"
	@mkdir -p build
	@$(BIN)/pip install -v --no-build-isolation -e ".[demo,test]" > build/build.log 2>&1 & pid=$$!; \
	  tail -f --pid=$$pid build/build.log 2>/dev/null \
	    | grep -a --line-buffered -oE '^ *\[[0-9]+/[0-9]+\] (Building|Linking) .*/?[^/]*$$' \
	    | sed -u -E 's|CMakeFiles/.*/||'; \
	  wait $$pid || { cat build/build.log; exit 1; }
	@touch $@

build: $(VENV)/.built
	@$(BIN)/python -c "import sparsekern; from sparsekern import _core; \
	  print('sparsekern', sparsekern.__version__, 'built;', 'kernels may use:', \
	        ' '.join(_core.active_isa()))"

# Two processes: most of the tests' time is Python's. `make test JOBS=0` runs them in one.
test: $(VENV)/.built
	$(BIN)/python -m pytest --numprocesses=$(JOBS) --dist=worksteal $(ARGS)

# The dense baselines of the demo and of the benchmarks.
$(VENV)/.baselines: $(VENV)/.built
	@$(BIN)/pip install -q "onnx>=1.16" "onnxruntime>=1.18"
	@touch $@

demo: $(VENV)/.baselines
	@$(BIN)/python demo/run.py $(ARGS)

$(VENV)/.dev: $(VENV)/.baselines
	@echo "$(VENV): tools for developers"
	@$(BIN)/pip install -q "ruff>=0.6" "mypy>=1.11"
	@touch $@

bench: $(VENV)/.dev
	@$(BIN)/python bench/run.py $(ARGS)

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

$(VENV)/.docs: $(VENV)/.built
	@$(BIN)/pip install -q "pdoc>=15"
	@touch $@

# The modules that the package's own page does not list.
DOCUMENTED := sparsekern $(addprefix sparsekern.,patterns prune quant training csr gqs nm convert checkpoint interop measure)

docs: $(VENV)/.docs
	@$(BIN)/pdoc --docformat google --no-show-source -o build/docs $(DOCUMENTED)
	@echo "wrote build/docs/index.html"

clean:
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache $(VENV)/.built
