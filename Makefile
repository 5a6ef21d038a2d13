# Everything runs in .venv, which the first target that needs it builds. Needed beforehand: Python 3.11+, make, git.
#   make demo     segments an image with the bundled model and shows the result
#   make test     the tests without the slow ones, on two processes
#   make check    what CI runs: lint, types, imports, compat, every test, the page
#   make check-web   the page of goca serve: over HTTP and, where Chromium is installed, in a browser; see build/web
# TORCH_INDEX names a wheel index to look for torch in besides the default one, for a build that fits the machine:
#   make test TORCH_INDEX=https://download.pytorch.org/whl/cpu

PYTHON ?= python3
TORCH_INDEX ?=

BIN := .venv/bin
STAMP := .venv/.goca-setup
PIP := $(BIN)/python -m pip --disable-pip-version-check

# The oldest diffusers of the declared range, with the hub client of its time: it refuses the one that newer releases use.
OLDEST_DIFFUSERS := 0.37.1
COMPAT := .compat/diffusers-$(OLDEST_DIFFUSERS)
COMPAT_PACKAGES := diffusers==$(OLDEST_DIFFUSERS) huggingface-hub==1.33.0 httpx==0.28.1 httpcore==1.0.9

# What the page and a browser need, in a folder of its own: gradio wants an older Pillow than constraints.txt has.
WEB := .web

.PHONY: help setup environments demo test check check-web lint types imports docs compat format clean

help:
	@sed -n 's/^# \{0,1\}//p;/^$$/q' Makefile

setup: $(STAMP)

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "goca needs Python 3.11 or newer, $(PYTHON) is older or missing: make PYTHON=/path/to/python3.11 ..." >&2; exit 1; }
	@$(PYTHON) -m venv .venv

$(STAMP): pyproject.toml constraints.txt | $(BIN)/python
	@echo "Setting up .venv (once; torch is large, so this takes minutes)"
	@$(PIP) install --quiet --no-compile --constraint constraints.txt $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) torch
	@$(PIP) install --quiet --no-compile --constraint constraints.txt --editable '.[dev]'
	@# On all cores, as pip does not; files that are templates, or of another Python, do not compile.
	@$(BIN)/python -m compileall -qq -j 0 .venv/lib || true
	@touch $@

demo: setup
	$(BIN)/python examples/demo.py

# SELECT picks tests; `make check` clears it.
SELECT ?= -m "not slow"
test: setup
	$(BIN)/python -m pytest -n 2 --dist worksteal $(SELECT)

# All that `check` runs in. A core unpacks .venv, the other one what is laid over it.
environments: setup $(COMPAT)/.installed $(WEB)/.installed

# Side by side, the longest first: each keeps one core busy.
check:
	$(MAKE) --jobs 2 environments
	$(MAKE) --jobs 2 --output-sync=target types check-web compat imports lint
	$(MAKE) test SELECT=

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup
	$(BIN)/mypy

imports: setup
	$(BIN)/lint-imports --no-logo

# Part of `test` already; alone while writing documentation.
docs: setup
	$(BIN)/python -m pytest tests/test_docs.py

compat: setup $(COMPAT)/.installed
	PYTHONPATH=$(COMPAT) $(BIN)/python -c 'import diffusers as d; assert d.__version__ == "$(OLDEST_DIFFUSERS)", d.__file__'
	PYTHONPATH=$(COMPAT) $(BIN)/python -m pytest tests/test_attention_hook.py tests/test_backbone.py

$(COMPAT)/.installed: Makefile | $(BIN)/python
	@rm -rf $(COMPAT)
	@$(PIP) install --quiet --no-deps --target $(COMPAT) $(COMPAT_PACKAGES)
	@touch $@

check-web: setup $(WEB)/.installed
	PYTHONPATH=$(WEB) $(BIN)/python -m pytest tests/test_web.py tests/test_web_browser.py

$(WEB)/.installed: constraints-web.txt | $(BIN)/python
	@rm -rf $(WEB)
	@$(PIP) install --quiet --no-deps --target $(WEB) --requirement constraints-web.txt
	@touch $@

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf .venv .compat .web .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis build dist
