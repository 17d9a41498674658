# vtc: `make demo` and `make test` work on a fresh clone with CPython 3.11, make and gcc.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
OUT ?= out/demo
# On all cores, one thread each. Exports make up most of the time, and SymPy, which works out their dynamic axes, forgets
# most of what it knows with the cache that it has by default.
PYTEST := OMP_NUM_THREADS=1 SYMPY_CACHE_SIZE=50000 $(BIN)/python -m pytest -n auto --dist loadgroup

.DEFAULT_GOAL := help
.PHONY: help install demo test test-full faults fuzz lint format types docs wheel study performance bench gpu test-js clean

help: ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

install: $(STAMP) ## Install vtc and what it needs into .venv (about 2 GB)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch==2.13.0
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

demo: $(STAMP) ## Install, then compress the reference model, export it, ask it, judge it, time it (a few minutes)
	$(BIN)/python -m vtc.cli.demo -o $(OUT)

test: lint types $(STAMP) ## Lint, types, tests (on all cores, one thread each)
	$(PYTEST)

test-full: lint types $(STAMP) ## As test, with what is left out there for time: every recipe and every layout on every family (over an hour)
	$(PYTEST) -m 'not gpu'

faults: $(STAMP) ## Kill, starve and disturb every verb that writes, and every system call of publishing (about an hour); prints JSON
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.faults

lint: $(STAMP) ## Check style, format and which way imports go
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-cache

types: $(STAMP) ## Check types
	$(BIN)/mypy

format: $(STAMP) ## Format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(STAMP) ## Write the tables of README.md and docs/ that come from the code
	$(BIN)/python -m docs.generate

wheel: $(STAMP) ## Build dist/vtc-VERSION-py3-none-any.whl, which pip installs on any machine
	$(BIN)/python -m build --wheel --no-isolation

study: $(STAMP) ## Measure everything that docs/learnpruner.md, docs/selectors.md, docs/precision.md and docs/projectors.md show (over two hours)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt matplotlib
	$(BIN)/python -m docs.studies.learnpruner
	$(BIN)/python -m docs.studies.selectors
	$(BIN)/python -m docs.studies.precision
	$(BIN)/python -m docs.studies.projectors

PEERS ?= out/peers
performance: $(STAMP) ## Measure everything that docs/performance.md shows, other runtimes included (2 to 3 hours, 35 GB of disk; the machine to itself)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt matplotlib
	$(BIN)/python -m docs.studies.peers --work $(PEERS)
	$(BIN)/python -m docs.studies.scaling --work $(PEERS)

bench: $(STAMP) ## Time the demo's bundle against the original, with many repeats
	@test -f $(OUT)/bundle/manifest.json || $(MAKE) demo
	$(BIN)/vtc bench $(OUT)/bundle --against reference --repeats 200 -o out/bench.json

MINUTES_ON_GPU ?= 12
gpu: $(if $(TINY),$(STAMP)) ## Measure all that a GPU shows with the python3 at hand, in 12 minutes (TINY=1: here, on the CPU)
	$(if $(TINY),$(BIN)/python,$(PYTHON)) -m docs.studies.gpu --minutes $(MINUTES_ON_GPU) $(if $(TINY),--tiny -o out/gpu-tiny,-o out/gpu) $(if $(BUNDLES),--bundles $(BUNDLES))

test-js: $(STAMP) ## Run a bundle in transformers.js and compare the tokens (needs Node 20)
	npm ci --prefix tests/js --silent
	$(BIN)/python -m pytest tests/js -m js

MINUTES ?= 5
SEED ?= 0
fuzz: $(STAMP) ## Try hostile inputs for MINUTES=5 from SEED=0; findings and counts go to out/fuzz
	$(BIN)/python -m tests.fuzz --minutes $(MINUTES) --seed $(SEED)

clean: ## Remove what was built
	rm -rf $(VENV) out build dist
