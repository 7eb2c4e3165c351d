# Two commands do everything on a fresh machine: `make demo` and `make test`. `make help` lists the rest.
#
# Overridable: PYTHON (3.11 to 3.13), VENV, PIP_ARGS (more arguments for pip, e.g. an index that has the CPU build of
# torch 2.13.0), ARGS (more arguments for pytest, e.g. ARGS="tests/plan -x").

SHELL := /bin/bash
PYTHON ?= python3
VENV ?= .venv
PIP_ARGS ?=
EXAMPLES ?= 5000
ARGS ?=
DEMO := local-dual

LOCK := requirements/locked.txt
BIN := $(VENV)/bin
# Named after what was installed: as long as neither file changes, `make` has nothing to install.
STAMP := $(VENV)/.installed-$(shell cat $(LOCK) pyproject.toml | cksum | cut -d' ' -f1)
# The real vLLM and vllm-ascend on a CPU: an environment of its own, since vLLM is another one there.
SIM := .ascend-sim
SIM_STAMP := $(SIM)/.built-$(shell cat requirements/ascend-sim.txt tools/ascend_sim.py | cksum | cut -d' ' -f1)

.DEFAULT_GOAL := help
.PHONY: help install demo demo-stop test test-all test-ascend ascend-sim fuzz lint format lock docs bench bench-all clean

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

install: $(STAMP) ## create .venv and install everything, pinned

demo: $(STAMP) ## start local-dual (real vLLM on this machine's CPU, dp=2), chat once, leave it running
	@$(BIN)/raylaunch start $(DEMO)
	@$(BIN)/python tools/demo.py $(DEMO)

demo-stop: $(STAMP) ## stop everything that `make demo` started
	@$(BIN)/raylaunch stop $(DEMO)

test: $(STAMP) ## the test suite, with real Ray and real vLLM on CPU
	@$(BIN)/python tools/run_tests.py $(ARGS)

test-all: $(STAMP) ## the test suite and the tests that take minutes (the whole fault drill, two hosts)
	@$(BIN)/python tools/run_tests.py --all $(ARGS)

ascend-sim: $(SIM_STAMP) ## build .ascend-sim: the real vllm-ascend on simulated NPUs (2.6 GB)

test-ascend: $(SIM_STAMP) ## the tests on the real vllm-ascend with simulated NPUs
	@$(SIM)/bin/python -m pytest tests/ascend_sim $(ARGS)

fuzz: $(STAMP) ## a long run of tests/fuzz with new inputs each time (EXAMPLES per test; some hours)
	@RAYLAUNCH_FUZZ_EXAMPLES=$(EXAMPLES) $(BIN)/pytest tests/fuzz -o timeout=7200 $(ARGS)

lint: $(STAMP) ## ruff, mypy --strict, and whether the recipe schema is current
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/python tools/schema.py --check

format: $(STAMP) ## let ruff fix what it can
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

lock: $(STAMP) ## resolve requirements/locked.txt again
	@$(BIN)/python tools/lock.py $(PIP_ARGS)

docs: $(STAMP) ## the documentation as a site in site/, warnings are errors
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

bench: $(STAMP) ## the short form of benchmarks/: tables, and which goals are missed (needs root; some minutes)
	@$(BIN)/python benchmarks/run.py --short

bench-all: $(STAMP) ## all of benchmarks/, into docs/benchmarks.md (needs root; an hour or two without other work)
	@$(BIN)/python benchmarks/run.py

clean: ## remove .venv, caches and everything that was built; stop the demo first
	rm -rf $(VENV) $(SIM) build dist site test-logs rendered .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find raylaunch tests tools benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

$(SIM_STAMP):
	@$(PYTHON) tools/ascend_sim.py $(SIM) $(VENV) $(PIP_ARGS)
	@touch $@

$(STAMP):
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || { \
	  echo "make: $(PYTHON) is $$($(PYTHON) --version 2>&1); raylaunch needs Python 3.11, 3.12 or 3.13." >&2; \
	  echo "make: name one: make PYTHON=python3.11 $(MAKECMDGOALS)" >&2; exit 1; }
	@test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV) || { \
	  echo "make: $(PYTHON) cannot make a venv (on Debian and Ubuntu: apt-get install python3-venv)" >&2; exit 1; }
	@echo "installing into $(VENV), pinned by $(LOCK) (about 0.9 GB of downloads the first time)"
	@$(BIN)/pip install --quiet --disable-pip-version-check --no-deps $(PIP_ARGS) -r $(LOCK)
	@$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@$(BIN)/python tools/check_install.py
	@rm -f $(VENV)/.installed-*
	@touch $@
