# `make demo` and `make test` create what they need; `. .venv/bin/activate` uses it afterwards.
SHELL := /bin/bash
.DELETE_ON_ERROR:
.PHONY: demo test test-long test-lowest lint format docs env lock

BIN := .venv/bin
# A process for each core; a file's tests share its fixtures, so they share a process.
PARALLEL := --numprocesses auto --maxprocesses 4 --dist loadfile

demo: .venv/ready
	$(BIN)/python recipes/demo_digits.py

test: .venv/ready
	$(BIN)/python -m pytest $(PARALLEL)

test-long: .venv/ready
	$(BIN)/python -m pytest -m long $(PARALLEL)

# The lowest versions that pyproject.toml allows, on tests that use each of these packages.
test-lowest: .venv/ready
	$(BIN)/uv venv --clear build/lowest
	$(BIN)/uv pip install --python build/lowest --resolution lowest-direct --editable '.[test]'
	build/lowest/bin/python -m pytest tests/command tests/quantizers/test_sat.py \
	    tests/test_analysis.py tests/test_loading.py tests/training/test_folder.py \
	    tests/training/test_history.py tests/export/files/test_functions.py

lint: .venv/ready
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

format: .venv/ready
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

# The site, in build/site. Its pages hold what the package has and draws, so this runs the package.
docs: .venv/ready
	PATH="$(CURDIR)/$(BIN):$$PATH" NO_MKDOCS_2_WARNING=1 mkdocs build --strict
	$(BIN)/python docs/_generate/links.py build/site

env: .venv/ready

# requirements.lock pins everything that pyproject.toml leaves open.
.venv/ready: pyproject.toml requirements.lock
	@python=$$(for name in python3 python3.12 python3.11 python3.10 python; do \
	    $$name -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' \
	        2>/dev/null && echo $$name && break; done); \
	if [ -z "$$python" ]; then \
	    echo "dlqat_tf needs Python 3.10, 3.11 or 3.12 (the range of larq-compute-engine's wheels);" \
	        "found $$(python3 --version 2>&1 || echo none)." >&2; exit 1; \
	fi; \
	echo "Creating .venv with $$($$python --version); the first time downloads about 1 GB." && \
	rm -rf .venv && $$python -m venv .venv && \
	$(BIN)/python -m pip install --quiet --disable-pip-version-check \
	    --constraint requirements.lock --editable '.[test,docs]' && \
	touch $@

lock:
	uv pip compile pyproject.toml --extra test --extra docs --universal --python-version 3.10 \
	    --no-annotate --no-header --output-file requirements.lock
