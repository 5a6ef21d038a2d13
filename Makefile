# Everything runs in .venv, which the first target that needs it builds. Needed beforehand: Python 3.11+, make, git.
#   make demo     segments an image with the bundled model and shows the result
#   make test     the tests without the slow ones, on two processes
#   make check    what CI runs: lint, types, imports, compat, every test, the page, the site, the distributions
#   make check-web   the page of goca serve: over HTTP and, where Chromium is installed, in a browser; see build/web
#   make site     the documentation as a site that opens from disk: build/site/index.html
#   make coverage the share of lines that the tests run; fails under 90 %
#   make dist     sdist and wheel in dist/, checked, and the wheel tried in an environment of its own
# TORCH_INDEX names a wheel index to look for torch in besides the default one, for a build that fits the machine:
#   make test TORCH_INDEX=https://download.pytorch.org/whl/cpu

PYTHON ?= python3
TORCH_INDEX ?=

# Every process compiles what it imports first, and the next ones read that: of .venv's files a quarter is ever imported.
unexport PYTHONDONTWRITEBYTECODE

BIN := .venv/bin
STAMP := .venv/.goca-setup
PIP := $(BIN)/python -m pip --disable-pip-version-check

# The oldest diffusers of the declared range, with the hub client of its time: it refuses the one that newer releases use.
OLDEST_DIFFUSERS := 0.37.1
COMPAT := .compat/diffusers-$(OLDEST_DIFFUSERS)
COMPAT_PACKAGES := diffusers==$(OLDEST_DIFFUSERS) huggingface-hub==1.33.0 httpx==0.28.1 httpcore==1.0.9

# What the page and a browser need, in a folder of its own: gradio wants an older Pillow than constraints.txt has.
WEB := .web

# The generators of the documentation site, and what builds and checks distributions, each in an environment of its own. To
# install a pip in each takes longer than what it would install; that of .venv does it.
SITE := .site
DIST := .dist

.PHONY: help setup environments demo test check check-web lint types imports docs site check-site dist check-extras compat coverage
.PHONY: format clean

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
	@touch $@

demo: setup
	$(BIN)/python examples/demo.py

# SELECT picks tests. `make check` takes all, and lists the slowest.
SELECT ?= -m "not slow"
test: setup
	$(BIN)/python -m pytest -n 2 --dist worksteal $(SELECT)

# All that `check` runs in. A core unpacks .venv, the other one what is laid over it or stands by itself.
environments: setup $(COMPAT)/.installed $(WEB)/.installed $(SITE)/.installed $(DIST)/.installed

# Side by side, the longest first: each keeps one core busy.
check:
	$(MAKE) --jobs 2 environments
	$(MAKE) --jobs 2 --output-sync=target types check-web compat check-site dist check-extras imports lint
	$(MAKE) test SELECT='--durations 40'

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup
	$(BIN)/mypy

imports: setup
	$(BIN)/lint-imports --no-logo

# The share of src/goca's lines that the tests run, in the processes that they start too. The slow tests count, so this takes as
# long as they all: not part of `check`. SELECT picks tests here as well; a part of them cannot reach the bar.
coverage: SELECT :=
coverage: setup
	$(BIN)/coverage erase
	$(BIN)/coverage run -m pytest -n 2 --dist worksteal $(SELECT)
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report

# Part of `test` already; alone while writing documentation.
docs: setup
	$(BIN)/python -m pytest tests/test_docs.py tests/test_site.py

compat: setup $(COMPAT)/.installed
	PYTHONPATH=$(COMPAT) $(BIN)/python -c 'import diffusers as d; assert d.__version__ == "$(OLDEST_DIFFUSERS)", d.__file__'
	PYTHONPATH=$(COMPAT) $(BIN)/python -m pytest tests/test_attention_hook.py tests/test_backbone.py

$(COMPAT)/.installed: Makefile | $(BIN)/python
	@rm -rf $(COMPAT)
	@$(PIP) install --quiet --no-compile --no-deps --target $(COMPAT) $(COMPAT_PACKAGES)
	@touch $@

check-web: setup $(WEB)/.installed
	PYTHONPATH=$(WEB) $(BIN)/python -m pytest tests/test_web.py tests/test_web_browser.py

$(WEB)/.installed: constraints-web.txt | $(BIN)/python
	@rm -rf $(WEB)
	@$(PIP) install --quiet --no-compile --no-deps --target $(WEB) --requirement constraints-web.txt
	@touch $@

site: $(SITE)/.installed
	$(SITE)/bin/python docs/website.py lay-out build/pages
	PYTHONPATH=docs $(SITE)/bin/zensical build --strict --clean

# Each generator finds what the other does not: Material, images that are not there and arguments that are documented and gone.
check-site: site
	NO_MKDOCS_2_WARNING=1 PYTHONPATH=docs $(SITE)/bin/mkdocs build --quiet --strict --site-dir build/site-mkdocs
	$(SITE)/bin/python docs/website.py check build/site build/site-mkdocs

$(SITE)/.installed: constraints-site.txt | $(BIN)/python
	@rm -rf $(SITE)
	@$(PYTHON) -m venv --without-pip $(SITE)
	@$(PIP) --python $(SITE)/bin/python install --quiet --no-compile --no-deps --requirement constraints-site.txt
	@touch $@

dist: $(DIST)/.installed | setup
	@rm -rf dist
	$(DIST)/bin/python -m build --no-isolation --outdir dist .
	$(DIST)/bin/python -m twine check --strict dist/*
	$(BIN)/python .ci/distributions.py dist

# Whether each extra can be had with each Python, as the index answers; nothing is installed.
check-extras: $(DIST)/.installed
	$(DIST)/bin/python .ci/extras.py $(DIST)/bin/uv

$(DIST)/.installed: constraints-dist.txt | $(BIN)/python
	@rm -rf $(DIST)
	@$(PYTHON) -m venv --without-pip $(DIST)
	@$(PIP) --python $(DIST)/bin/python install --quiet --no-compile --no-deps --requirement constraints-dist.txt
	@touch $@

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf .venv .compat .web .site .dist .cache .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis build dist
