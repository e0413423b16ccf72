# make quickstart | test | check | bench | setup | clean. All of them set up .venv by themselves, once.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup quickstart test check bench clean test-packages

VENV := .venv
PYTHON := $(VENV)/bin/python
READY := $(VENV)/.ready
BENCH := $(VENV)/bench
# Debian packages that tests need; installed by `make test` when it runs as root and they are missing
TEST_PACKAGES := slurm-wlm
# and this one, a Java runtime for Spark, where there is no other
TEST_JAVA := default-jre-headless

export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
# Where DeepSpeed's compiled operations live. bigdiff.cluster.submit gives the same folder to local jobs.
export TORCH_EXTENSIONS_DIR := $(CURDIR)/$(VENV)/torch_extensions
# img2dataset's augmentation library would call out at import
export NO_ALBUMENTATIONS_UPDATE := 1

help:
	@echo "make quickstart   the whole job on an embedded dataset: image URLs in, a trained pipeline out"
	@echo "make test         all tests"
	@echo "make check        format, lint, types, imports, structure"
	@echo "make bench        measurements, some forty minutes, into tests/bench/results/"
	@echo "make setup        the virtual environment alone (the others do it when needed)"
	@echo "make clean        deletes caches and build folders; .venv and runs/ stay (rm -rf them yourself)"

setup: $(READY)

quickstart: $(READY)
	$(PYTHON) -m bigdiff.quickstart

test: $(READY) test-packages
	$(PYTHON) tests/parts/halves.py

bench: $(READY) $(BENCH)/litdata/.ready $(BENCH)/streaming/.ready
	$(PYTHON) -m pytest -m bench tests/bench

# Libraries to measure against whose pins do not fit ours: each in an environment that has its own packages first and
# ours behind them.
$(BENCH)/litdata/.ready: PACKAGES := litdata==0.2.76
$(BENCH)/streaming/.ready: PACKAGES := "numpy<2.2" mosaicml-streaming==0.13.0
$(BENCH)/%/.ready: $(READY)
	$(PYTHON) -m venv $(@D)
	for folder in $(CURDIR)/$(VENV)/lib/python3*/site-packages; do \
	  for own in $(@D)/lib/python3*/site-packages; do echo "$$folder" > "$$own/zz_bigdiff.pth"; done; done
	$(@D)/bin/pip install --quiet --disable-pip-version-check $(PACKAGES)
	@touch $@

check: $(READY)
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports
	$(PYTHON) -m pytest tests/test_structure.py

clean:
	rm -rf build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -path ./$(VENV) -prune -o -path ./runs -prune -o -name __pycache__ -type d -print0 | xargs -0 rm -rf

# Made again when the dependencies change. The exact versions, checked by hash, come from constraints.txt; the index is
# whatever pip is configured with.
$(READY): pyproject.toml constraints.txt bigdiff/data/_preads.c bigdiff/runtime/_philox.c
	@python=""; \
	for candidate in python3.11 python3.12 python3; do \
	  if "$$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 13))' 2>/dev/null; then \
	    python=$$candidate; break; fi; done; \
	if [ -z "$$python" ]; then \
	  echo "error: Python 3.11 or 3.12 is needed, and python3.11, python3.12, python3 are not that: install one" >&2; exit 2; fi; \
	command -v g++ >/dev/null || { \
	  echo "error: g++ is needed to build DeepSpeed's CPU collective (Debian: apt-get install g++ python3-dev)" >&2; exit 2; }; \
	[ -x $(PYTHON) ] || "$$python" -m venv $(VENV) || { rm -rf $(VENV); \
	  echo "error: $$python cannot make a virtual environment (Debian: apt-get install python3-venv)" >&2; exit 2; }
	$(PYTHON) -m pip install --disable-pip-version-check --require-hashes -r constraints.txt
	$(PYTHON) -m pip install --disable-pip-version-check --no-deps --no-build-isolation -e .
	@echo "building DeepSpeed's CPU collective, once (a minute or two)"
	@# a build that was killed leaves a lock for which the next one would wait for ever
	@rm -f $(TORCH_EXTENSIONS_DIR)/*/lock
	@DS_ACCELERATOR=cpu $(PYTHON) -c "from deepspeed.ops.op_builder.cpu import ShareMemCommBuilder as B; B().load(verbose=False)" \
	  || { echo "error: the build failed; it needs g++ and Python's headers (Debian: apt-get install g++ python3-dev)" >&2; exit 1; }
	@touch $@

test-packages:
	@missing=""; \
	for package in $(TEST_PACKAGES); do dpkg -s "$$package" >/dev/null 2>&1 || missing="$$missing $$package"; done; \
	command -v java >/dev/null || missing="$$missing $(TEST_JAVA)"; \
	if [ -z "$$missing" ]; then echo "no Debian packages are missing for the tests"; \
	elif [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	  apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $$missing; \
	else echo "missing for some tests, which will be skipped:$$missing"; fi
