# make run    the sample corpus through the whole pipeline, then a table of results
# make test   everything that is fast; make help lists the rest
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
TOOLS := $(VENV)/.installed-tools# what tests and lint need beyond
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile# Python compiles what is imported
export MLFLOW_DISABLE_TELEMETRY = true
export DO_NOT_TRACK = 1
export PYTHONDONTWRITEBYTECODE =# otherwise every process compiles every module again

.PHONY: help install run test coverage test-long lint docs bench ui clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 18

install: $(STAMP) ## make .venv with the exact versions of requirements.lock

$(STAMP): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "error: $(PYTHON) is older than 3.11; give another: make PYTHON=python3.12 install"; exit 2; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV) (2 GB, or 6 GB with a torch for CUDA)"
	@$(PIP) --constraint requirements.lock torch torchvision # with what a build for CUDA needs: it is not in the lock
	@grep -v '^#' requirements.lock | xargs -P 2 -n 24 $(PIP) --no-deps # two at a time take half as long as one
	@$(BIN)/python -c 'from importlib.metadata import version; import sys; builds = {version(name).partition("+")[2] for name in ("torch", "torchvision")}; len(builds) > 1 and print("warning: torch and torchvision are of different builds; install both from one index, as README.md does", file=sys.stderr)'
	@$(PIP) --no-deps --no-build-isolation -e .
	@touch $@

$(TOOLS): $(STAMP) requirements-dev.lock
	@$(PIP) --no-deps -r requirements-dev.lock
	@touch $@

run: $(STAMP) ## render the sample, run the whole pipeline, print results against chance
	@$(BIN)/alpro run --config sample

# One process more than the cores here: a test in five waits, for the disk or a process that it started.
FAST := $(BIN)/python -m pytest -q -n 3 --dist loadfile --no-loadscope-reorder -m "not long"

test: $(TOOLS) ## the fast tests
	$(FAST)

coverage: $(TOOLS) ## the fast tests, and the lines and branches that they do not reach
	$(FAST) --cov --cov-report=term

test-long: $(TOOLS) ## long trials: real servers, kills, full sizes; about half an hour
	$(BIN)/python -m pytest -q -n 3 --dist worksteal -m long --durations=10 -o timeout=2400 -o faulthandler_timeout=2460

lint: $(TOOLS) docs ## ruff, mypy, pyright, and the site
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/basedpyright

docs: $(TOOLS) ## build the documentation as a site, with the API reference, in build/site
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --config-file docs/mkdocs.yml

bench: $(TOOLS) ## the benchmarks, each a table with a ratio against its baseline
	@for program in $$(grep -l __main__ benchmarks/*.py); do $(BIN)/python $$program || exit 1; done

ui: $(STAMP) ## open MLflow on this machine
	@$(BIN)/alpro ui

clean: ## delete the environment and all artifacts
	rm -rf $(VENV) workspace .coverage* .mypy_cache .ruff_cache .pytest_cache *.egg-info
