# Python to make .venv from; by default the newest tested one that is found.
PYTHON ?=
# Passed on to the command: make train ARGS="model=unet data=driving"
ARGS ?=

VENV := .venv
LOCK := requirements.lock
READY := $(VENV)/.ready
RUN := $(VENV)/bin/python

.DEFAULT_GOAL := help
.PHONY: help train test test-all test-gpu test-integrations lint format notebooks benchmark wheel lock clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-17s  %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

train: $(READY) ## train and measure a model: ARGS="model=unet data=driving"
	@$(RUN) src/train.py $(ARGS)

test: $(READY) ## the quick tests, on all cores
	@$(RUN) -m pytest -n auto --dist worksteal $(ARGS)

test-all: $(READY) ## all tests that need no GPU, on real data too where there is any
	@$(RUN) -m pytest -m "not gpu and not integration" $(ARGS)

test-gpu: $(READY) ## the tests that need a GPU
	@$(RUN) -m pytest -m gpu $(ARGS)

test-integrations: ## the tests with Ray, MLflow and Optuna's dashboard, in an environment of their own
	@$(MAKE) --no-print-directory VENV=.venv-integrations LOCK=requirements-integrations.lock \
		test ARGS="-n 0 -m integration tests/integrations $(ARGS)"

lint: $(READY) ## style and types
	@$(RUN) -m ruff check .
	@$(RUN) -m ruff format --check .
	@$(RUN) -m mypy

format: $(READY) ## mend the style
	@$(RUN) -m ruff check --fix-only .
	@$(RUN) -m ruff format .

notebooks: $(READY) ## run the notebooks as tests
	@$(RUN) -m pytest --nbmake --nbmake-timeout=600 notebooks $(ARGS)

benchmark: $(READY) ## measure the figures of the README, but for the tables of trained networks, which take hours
	@set -e; for script in $(filter-out benchmarks/networks.py,$(wildcard benchmarks/*.py)); do echo "== $$script"; $(RUN) $$script $(ARGS); done

wheel: $(READY) ## build dist/: the sdist, and the wheel from it
	@$(RUN) -m build --no-isolation

lock: $(READY) ## pin the dependencies of pyproject.toml anew: ARGS=--upgrade for the newest
	@$(compile) pyproject.toml -o requirements.lock
	@$(compile) --group integrations pyproject.toml -o requirements-integrations.lock

compile = $(RUN) -m uv pip compile --universal --python-version 3.11 --generate-hashes --group dev --custom-compile-command "make lock" \
	--quiet $(ARGS)

clean: ## remove caches and builds; runs and .venv stay
	@rm -rf build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
	@find src tests benchmarks -name __pycache__ -prune -exec rm -rf {} + 2>/dev/null || true

# .ready is the last file that an installation writes and the first that the next one removes: an installation that was
# interrupted starts afresh. The lock pins uv too, so that even the installer comes by hash.
$(READY): $(LOCK) $(RUN)
	@test -e $@ && $(RUN) -c "" 2>/dev/null || { $(find-python) && "$$python" -m venv --clear $(VENV); }
	@rm -f $@
	@echo "installing $(LOCK) into $(VENV)"
	@awk '/^[^ #]/ { wanted = /^uv==/ } wanted' $(LOCK) > $(VENV)/uv.txt
	@$(RUN) -m pip install --quiet --disable-pip-version-check --require-hashes -r $(VENV)/uv.txt
	@$(RUN) -m uv pip sync --require-hashes --python $(RUN) --build-constraints $(LOCK) $(LOCK)
	@touch $@

# Without a rule, a .venv whose Python has gone would be an error; with this one it is made again.
$(RUN): ;

define find-python
for python in $(or $(PYTHON),python3.13 python3.12 python3.11 python3); do \
	"$$python" -c "import sys, ensurepip, venv; sys.exit(sys.version_info < (3, 11))" 2>/dev/null && break; python=; \
done; \
test -n "$$python" || { \
	echo "no Python 3.11 or newer with venv found (looked for: $(or $(PYTHON),python3.13 python3.12 python3.11 python3));" \
	"install one (Debian and Ubuntu: python3-venv too), or name it: make PYTHON=/path/to/python3 ..." >&2; exit 1; \
}
endef
