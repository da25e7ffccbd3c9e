# `make demo` and `make test` create what they need; `. .venv/bin/activate` uses it afterwards.
SHELL := /bin/bash
.DELETE_ON_ERROR:
.PHONY: demo test test-long lint format env lock

BIN := .venv/bin

demo: .venv/ready
	$(BIN)/python recipes/demo_digits.py

test: .venv/ready
	$(BIN)/python -m pytest

test-long: .venv/ready
	$(BIN)/python -m pytest -m long

lint: .venv/ready
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

format: .venv/ready
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

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
	    --constraint requirements.lock --editable '.[test]' && \
	touch $@

lock:
	uv pip compile pyproject.toml --extra test --universal --python-version 3.10 \
	    --no-annotate --no-header --output-file requirements.lock
