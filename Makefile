# Targets run in .venv, which make creates and fills by itself: Python >= 3.10 and make are enough.
# README.md has the same steps as plain commands, for Windows.

# A relative path, so that the checkout's own path may contain spaces.
VENV_PYTHON := .venv/bin/python

# Variables: PYTHON, TORCH and TORCH_INDEX. If make is called without one of them, the value that .venv was last made with
# still holds, so that `make demo` keeps the virtual environment that `make venv TORCH_INDEX=...` made. An empty value
# stands for the default.
last = $(shell sed -n 's/^$(1)=//p' .venv/torch.stamp 2>/dev/null)
ifeq ($(origin PYTHON),undefined)
PYTHON := $(call last,PYTHON)
endif
ifeq ($(origin TORCH),undefined)
TORCH := $(call last,TORCH)
endif
ifeq ($(origin TORCH_INDEX),undefined)
TORCH_INDEX := $(call last,TORCH_INDEX)
endif
GIVEN_PYTHON := $(PYTHON)
GIVEN_TORCH := $(TORCH)
override PYTHON := $(or $(PYTHON),python3)
override TORCH := $(or $(TORCH),torch==2.13.0)

# A virtual environment made with other values, or for a checkout that has moved, is rebuilt.
CHOICE := $(PYTHON) | $(TORCH) | $(TORCH_INDEX) | $(CURDIR)
INSTALLED := $(shell $(VENV_PYTHON) -c "print(open('.venv/torch.stamp').readline().strip())" 2>/dev/null)

# Spinning OpenMP threads are far slower than one thread on a machine that is busy.
export OMP_NUM_THREADS := 1

# A worker per core, each of which takes tests over from the others when it has none left.
PARALLEL := -n logical --maxprocesses 8 --dist worksteal

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help venv lint test test-extra demo clean

help: ## list the targets and variables
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/make \1|\2/p' Makefile | awk -F'|' '{ printf "%-17s %s\n", $$1, $$2 }'
	@echo
	@echo 'Variables: PYTHON (now "$(PYTHON)"), interpreter that .venv is made from; TORCH (now "$(TORCH)"), PyTorch'
	@echo 'requirement; TORCH_INDEX (now "$(TORCH_INDEX)"), package index of PyTorch. make remembers them for later calls.'
	@echo 'Without an NVIDIA driver use make venv TORCH_INDEX=https://download.pytorch.org/whl/cpu, because the default'
	@echo 'Linux wheel is several gigabytes.'

venv: .venv/installed.stamp ## create .venv and install Refine into it
	@echo 'Refine is installed in .venv. Activate it with ". .venv/bin/activate", or try the demo: make demo'

lint: .venv/installed.stamp ## run the checks of pre-commit: ruff, ruff format, mypy
	$(VENV_PYTHON) -m ruff check .
	$(VENV_PYTHON) -m ruff format --check .
	$(VENV_PYTHON) -m mypy

test: lint ## run lint and the fast tests
	$(VENV_PYTHON) -m pytest -m "not slow" $(PARALLEL)

test-extra: .venv/installed.stamp ## run sanitizers, compilers, browsers and long fuzzing
	$(VENV_PYTHON) -m pytest -m slow -rsfE $(PARALLEL)

demo: .venv/installed.stamp ## refine the built-in digits generator on the CPU, and write a report: a few minutes
	$(VENV_PYTHON) -m refine demo

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
.venv/torch.stamp: export GIVEN_PYTHON := $(GIVEN_PYTHON)
.venv/torch.stamp: export GIVEN_TORCH := $(GIVEN_TORCH)
.venv/torch.stamp: export TORCH_INDEX := $(TORCH_INDEX)
# PyTorch comes first and from its own index, so that the second install finds it and leaves it alone.
.venv/torch.stamp:
	@"$(PYTHON)" -c "" 2>/dev/null || { echo 'Refine needs Python 3.10 or later, and the command "$(PYTHON)" does not run: name one with make PYTHON=/path/to/python3.' >&2; exit 2; }
	@"$(PYTHON)" -c "import sys; sys.exit(sys.version_info < (3, 10))" || { echo 'Refine needs Python 3.10 or later, and "$(PYTHON)" is older: name another one with make PYTHON=/path/to/python3.' >&2; exit 2; }
	@"$(PYTHON)" -c "import ensurepip, venv" 2>/dev/null || { echo 'Python at "$(PYTHON)" lacks its venv module: install it (on Debian and Ubuntu, apt install python3-venv), or name another Python with make PYTHON=/path/to/python3.' >&2; exit 2; }
	@if [ -d .venv ]; then printf 'Rebuilding .venv (interpreter | PyTorch | index | folder):\n  was  %s\n  now  %s\n' "$$(sed -n 1p $@ 2>/dev/null || echo incomplete)" "$$VENV_CHOICE"; fi
	"$(PYTHON)" -m venv --clear .venv
	$(VENV_PYTHON) -m pip install --quiet $(if $(TORCH_INDEX),--index-url "$(TORCH_INDEX)") "$(TORCH)"
	@printf '%s\nPYTHON=%s\nTORCH=%s\nTORCH_INDEX=%s\n' "$$VENV_CHOICE" "$$GIVEN_PYTHON" "$$GIVEN_TORCH" "$$TORCH_INDEX" > $@

.PHONY: FORCE
FORCE:
