# Everything here runs in .venv, which make creates and fills by itself: Python >= 3.10 and make are enough.
# README.md has the same steps as plain commands, for Windows.

PYTHON ?= python3
TORCH ?= torch==2.13.0
TORCH_INDEX ?=

# A relative path, so that the checkout's own path may contain spaces.
VENV_PYTHON := .venv/bin/python
# A virtual environment made from other choices, or for a checkout that has moved, is made anew.
CHOICE := $(PYTHON) | $(TORCH) | $(TORCH_INDEX) | $(CURDIR)
INSTALLED := $(shell $(VENV_PYTHON) -c "print(open('.venv/torch.stamp').read().strip())" 2>/dev/null)

# Spinning OpenMP threads are far slower than one thread on a machine that is busy.
export OMP_NUM_THREADS := 1

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help venv lint test test-extra demo clean

help: ## list the targets and variables
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/make \1|\2/p' Makefile | awk -F'|' '{ printf "%-17s %s\n", $$1, $$2 }'
	@echo
	@echo 'Variables: PYTHON (now "$(PYTHON)"), the interpreter that .venv is made from; TORCH (now "$(TORCH)"), the PyTorch'
	@echo 'requirement; TORCH_INDEX (now "$(TORCH_INDEX)"), the package index it comes from. Without an NVIDIA driver use'
	@echo 'make TORCH_INDEX=https://download.pytorch.org/whl/cpu, since the default Linux wheel is several gigabytes.'

venv: .venv/installed.stamp ## create .venv and install Refine into it

lint: .venv/installed.stamp ## the checks that pre-commit runs: ruff, ruff format, mypy
	$(VENV_PYTHON) -m ruff check .
	$(VENV_PYTHON) -m ruff format --check .
	$(VENV_PYTHON) -m mypy

test: lint ## lint and the fast tests
	$(VENV_PYTHON) -m pytest -m "not slow"

test-extra: .venv/installed.stamp ## sanitizer, compiler and browser checks and long fuzzing
	$(VENV_PYTHON) -m pytest -m slow -rs

demo: .venv/installed.stamp ## refine the built-in digits generator on the CPU, and write a report: a few minutes
	$(VENV_PYTHON) refine.py --gan=digits --teacher=edm-digits
	$(VENV_PYTHON) -m refine.digits.judge training-runs/latest

clean: ## remove .venv and all caches
	rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/installed.stamp: .venv/torch.stamp pyproject.toml
	$(VENV_PYTHON) -m pip install --quiet --editable ".[dev]"
	@touch $@

ifneq ($(INSTALLED),$(CHOICE))
.venv/torch.stamp: FORCE
endif
.venv/torch.stamp: export VENV_CHOICE = $(CHOICE)
# PyTorch comes first and from its own index, so that the second install finds it and leaves it alone.
.venv/torch.stamp:
	@"$(PYTHON)" -c "" 2>/dev/null || { echo 'Refine needs Python 3.10 or later, and the command "$(PYTHON)" does not run: name one with make PYTHON=/path/to/python3.' >&2; exit 2; }
	@"$(PYTHON)" -c "import sys; sys.exit(sys.version_info < (3, 10))" || { echo 'Refine needs Python 3.10 or later, and "$(PYTHON)" is older: name another one with make PYTHON=/path/to/python3.' >&2; exit 2; }
	@"$(PYTHON)" -c "import ensurepip, venv" 2>/dev/null || { echo 'Python at "$(PYTHON)" lacks its venv module: install it (on Debian and Ubuntu, apt install python3-venv), or name another Python with make PYTHON=/path/to/python3.' >&2; exit 2; }
	"$(PYTHON)" -m venv --clear .venv
	$(VENV_PYTHON) -m pip install --quiet $(if $(TORCH_INDEX),--index-url "$(TORCH_INDEX)") "$(TORCH)"
	@printf '%s\n' "$$VENV_CHOICE" > $@

.PHONY: FORCE
FORCE:
