# What a developer types. `make setup` makes .venv and is quick when nothing changed; the rest builds on it.
#
#   make setup          environment with everything      make lint           ruff, mypy, import contracts
#   make demo           train and run a hierarchy        make protos         regenerate the gRPC stubs
#   make test           the tests                        make protos-check   fail if the stubs are stale
#   make test-slow      the tests left out of it         make wheel          sdist and wheel into dist/
#   make clean          remove everything generated      make wheel-check    install the wheel alone, without torch
#   make cross-tools    aarch64 compiler and emulators that some tests need; tests skip what is not there
#   make databases      a PostgreSQL that some tests start clusters of; they skip without it
#
# PYTHON=... chooses the interpreter (3.10 to 3.13). Plain `pip install torch` takes whatever build the configured index
# offers, which is often a large GPU build; TORCH_INDEX=... names another one, for instance the CPU wheel index of
# pytorch.org. PIP_ARGS=... reaches every pip call.

PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3.10 python3; do \
	$$p -c 'import ensurepip, sys, venv; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null \
	&& echo $$p && break; done)
PIP_ARGS ?= --quiet --disable-pip-version-check
TORCH_INDEX ?=
# Test processes; each runs its numerics on one thread, so that they do not fight for cores.
JOBS ?= 2
PYTEST_ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
# The oldest supported protobuf toolchain: generated code refuses to load on a runtime older than itself.
PROTOC_VENV := .venv-protos
GRPCIO_TOOLS := grpcio-tools==1.70.0
WHEEL_VENV := build/wheel-venv
NEEDS_DEVICE := not gpu and not tensorrt

.DEFAULT_GOAL := setup
.PHONY: setup demo test test-slow lint protos protos-check wheel wheel-check cross-tools databases clean

setup: $(VENV)/.ready

$(VENV)/.ready: pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "no Python 3.10 to 3.13 with venv and pip found; install one or name it: make setup PYTHON=/path/to/python3.11" >&2; exit 1; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || { echo "making $(VENV) with $(PYTHON)"; $(PYTHON) -m venv --clear $(VENV); }
	@echo "installing torch, then tierline with its tools; the first time this takes some minutes"
	@$(BIN)/python -m pip install $(PIP_ARGS) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) -c constraints.txt torch
	@$(BIN)/python -m pip install $(PIP_ARGS) -c constraints.txt -e '.[dev]'
	@$(BIN)/python -m tierline.kernels.build >/dev/null || echo "codecs run in NumPy, which is slower, until a C++ compiler is there"
	@touch $@

demo: setup
	$(BIN)/tierline demo --retrain

test: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) -m "$(NEEDS_DEVICE) and not slow" $(PYTEST_ARGS)

test-slow: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "$(NEEDS_DEVICE) and slow" $(PYTEST_ARGS)

lint: setup
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

protos: setup $(PROTOC_VENV)/.ready
	$(BIN)/python tools/protos.py --protoc-python $(PROTOC_VENV)/bin/python

protos-check: setup $(PROTOC_VENV)/.ready
	$(BIN)/python tools/protos.py --protoc-python $(PROTOC_VENV)/bin/python --check

$(PROTOC_VENV)/.ready: Makefile | $(VENV)/.ready
	@$(PROTOC_VENV)/bin/python -m pip --version >/dev/null 2>&1 || $(BIN)/python -m venv --clear $(PROTOC_VENV)
	@$(PROTOC_VENV)/bin/python -m pip install $(PIP_ARGS) $(GRPCIO_TOOLS)
	@touch $@

wheel: setup
	rm -rf dist
	$(BIN)/python -m hatchling build

# The wheel with its base dependencies alone must import everywhere but in the modules named after a framework.
wheel-check: wheel
	$(BIN)/python -m venv --clear $(WHEEL_VENV)
	$(WHEEL_VENV)/bin/python -m pip install $(PIP_ARGS) -c constraints.txt dist/*.whl
	cd build && wheel-venv/bin/python -W error ../tools/import_all.py
	if test -f cli/tierline/cli/main.py; then $(WHEEL_VENV)/bin/tierline --version; fi

# Debian's names. Without root or without these packages nothing fails: the tests that need them say so and skip.
cross-tools: TOOLS := aarch64-linux-gnu-g++ qemu-aarch64-static qemu-x86_64-static
cross-tools: PACKAGES := g++ g++-aarch64-linux-gnu qemu-user-static
databases: TOOLS := initdb setpriv
databases: PACKAGES := postgresql
cross-tools databases:
	@PATH="$$PATH:$$(echo /usr/lib/postgresql/*/bin | tr ' ' ':')"; \
	missing=; for tool in $(TOOLS); do command -v $$tool >/dev/null || missing="$$missing $$tool"; done; \
	if test -z "$$missing"; then \
		echo "$@ are there"; \
	elif test "$$(id -u)" != 0 || ! command -v apt-get >/dev/null; then \
		echo "no$$missing, which root installs with apt-get ($(PACKAGES)); tests that need them skip"; \
	else \
		install="apt-get install -y -q --no-install-recommends $(PACKAGES)"; \
		$$install >/dev/null 2>&1 || { apt-get update -q >/dev/null 2>&1 && $$install >/dev/null 2>&1; } \
			|| echo "apt-get installs no$$missing here; tests that need them skip"; \
	fi

clean:
	rm -rf $(VENV) $(PROTOC_VENV) build dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
