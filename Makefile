# One command each: make install | demo | test | faults | check | bench | topics | lock | clean. `make` alone lists them.
#
# Standard output belongs to the program that a target runs: `make demo ARGS="--once --json" | jq .` works, so
# whatever is said while installing goes to standard error and no recipe is echoed.
#
#   ARGS=...         arguments for demo, bench, topics, and for pytest in `make test`
#   EXTRA=cpu|gpu    which ONNX Runtime `make install` and `make demo` put in .venv (default: what is there, else cpu)
#   PYTHON=...       the interpreter of a new .venv (default: the first of python3 and python3.11-3.14 that is new enough)

SHELL := /bin/sh
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-print-directory

ARGS ?=
EXTRA ?= $(if $(wildcard .venv/installed-gpu),gpu,cpu)
LOCKS := deploy/requirements

ifeq ($(filter cpu gpu,$(EXTRA)),)
$(error EXTRA is '$(EXTRA)': expected cpu or gpu)
endif

export PYTHON

.PHONY: help install demo test faults check bench topics lock clean

help:
	@echo 'make install   a worker and an embedded broker in .venv (EXTRA=gpu for CUDA); then .venv/bin/headwater up'
	@echo 'make demo      everything on real data with embedded parts (ARGS="--once --json")'
	@echo 'make test      lint, format, types and all tests (ARGS="-k parking" goes to pytest)'
	@echo 'make faults    the fault suite in full, for many minutes (`make test` has it in short)'
	@echo 'make check     lint, format and types alone'
	@echo 'make bench     the published figures on this machine'
	@echo 'make topics    creates what is missing on HEADWATER_KAFKA_BOOTSTRAP_SERVERS'
	@echo 'make lock      resolves the locks again (ARGS=--upgrade for newer versions)'
	@echo 'make clean     removes the environments, caches and local data'

# The environments. A stamp says which lock an environment was made from; .venv with the demo in it is also a
# serving install, so it leaves both stamps.

install: .venv/installed-$(EXTRA)

.venv/installed-$(EXTRA): $(LOCKS)/$(EXTRA).txt $(LOCKS)/broker.txt pyproject.toml
	@deploy/install.sh .venv $(EXTRA) broker >&2
	@touch $@

.venv/installed-$(EXTRA)-demo: $(LOCKS)/demo.txt $(LOCKS)/$(EXTRA).txt pyproject.toml
	@deploy/install.sh .venv $(EXTRA) demo >&2
	@touch .venv/installed-$(EXTRA) $@

.venv-dev/installed: $(LOCKS)/dev.txt pyproject.toml
	@deploy/install.sh .venv-dev dev >&2
	@touch $@

# The commands. `exec` makes the program the direct child of make: Ctrl-C reaches it once, nothing is left behind.

demo: .venv/installed-$(EXTRA)-demo
	@exec .venv/bin/headwater demo $(ARGS)

topics: .venv/installed-$(EXTRA)
	@exec .venv/bin/headwater topics create $(ARGS)

# Five runs beside each other, each with brokers of its own: what waits for brokers and workers leaves the cores to the rest.
BROKERS := tests/contract tests/project tests/unit/commands
APART := tests/end_to_end tests/faults tests/unit/models $(BROKERS)

test: check
ifeq ($(strip $(ARGS)),)
	@run() { .venv-dev/bin/python -m pytest -q "$$@" & runs="$$runs $$!"; }; runs=; failed=0; \
	run tests/end_to_end; run tests/faults; run tests/unit/models; run $(BROKERS); run $(addprefix --ignore=,$(APART)); \
	for run in $$runs; do wait $$run || failed=1; done; exit $$failed
else
	@exec .venv-dev/bin/python -m pytest $(ARGS)
endif

faults: .venv-dev/installed
	@FAULTS=full exec .venv-dev/bin/python -m pytest tests/faults $(ARGS)

check: .venv-dev/installed
	@.venv-dev/bin/ruff check .
	@.venv-dev/bin/ruff format --check .
	@.venv-dev/bin/mypy

bench: .venv-dev/installed
	@exec .venv-dev/bin/python -m tests.bench $(ARGS)

lock:
	@deploy/lock.sh $(ARGS) >&2

clean:
	rm -rf .venv .venv-dev .uv .headwater build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
