# Everything a developer or a build machine runs. Needs GNU make, Python 3.11 or later, and a package index.

PYTHON ?= $(shell command -v python3.11 || echo python3)
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
CODE := $(wildcard src tests bench tools)

# A real Triton, for the tests and the measurements, in an environment of its own: its models need a
# NumPy before 2, which there is none of after Python 3.12, and Python as a shared library.
TRITON := $(VENV)/triton
TRITON_PYTHON ?= $(BIN)/python python3.12 python3.11
TRITON_RUNS_ON := import ctypes, platform, sys, sysconfig; \
	assert (platform.system(), platform.machine()) == ("Linux", "x86_64"); \
	assert sys.version_info[:2] in ((3, 11), (3, 12)); \
	ctypes.CDLL("%s/libpython%s.so.1.0" % tuple(sysconfig.get_config_vars("LIBDIR", "py_version_short")))

# Apache Kafka, for the tests: its jars by their Maven coordinates, and the Java that runs them.
KAFKA := .cache/kafka
MAVEN_COPY := org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy-dependencies

# Locking needs uv; nothing else does, so it lives apart from the environment.
UV_VERSION := 0.13.9
UV := .cache/uv-$(UV_VERSION)/bin/uv
COMPILE := env -u UV_FIND_LINKS UV_NO_CONFIG=1 $(UV) pip compile --quiet \
	--universal --python-version 3.11 --generate-hashes \
	--no-emit-index-url --no-emit-find-links --custom-compile-command 'make lock'

export ORT_DISABLE_TELEMETRY = 1

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup demo test simulate lint format bench bench-batch bench-proxy bench-triton chaos triton kafka lock clean

help:  ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(VENV)/.setup  ## Make .venv with the pinned dependencies and this package (does nothing when up to date)

demo: setup  ## Start the platform with a small model and send it requests
	$(BIN)/headrace demo

test: lint triton kafka  ## Run every check: lint, format, types, imports, then the tests (PYTEST_ARGS=... passes options)
	$(BIN)/python -m pytest --numprocesses auto --dist loadfile $(PYTEST_ARGS)

simulate: setup  ## Run a million schedules of batch jobs in simulated time (SEED=n shows one)
	$(BIN)/python -m tests.support.simulation $(if $(SEED),--seed $(SEED),--seeds 1000000) $(SIMULATE_ARGS)

lint: setup  ## Run the static checks only
	$(BIN)/ruff check $(CODE)
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/mypy $(CODE)
	$(BIN)/lint-imports

format: setup  ## Format the code and apply the safe fixes
	$(BIN)/ruff format $(CODE)
	$(BIN)/ruff check --fix $(CODE)

bench: setup  ## Measure, and print the figures
	$(BIN)/python -m bench $(BENCH_ARGS)

bench-batch: setup  ## Measure batch jobs beside a bare loop (FULL=1: memory over 10,000,000 rows)
	$(BIN)/python -m bench.batch $(if $(FULL),--full) $(BENCH_ARGS)

bench-proxy: setup  ## Measure what passing a request on costs, beside nginx, HAProxy and Envoy
	$(BIN)/python -m bench.proxy $(BENCH_ARGS)

bench-triton: setup triton  ## Measure a real Triton, asked directly and through the platform
	$(BIN)/python -m bench.triton $(BENCH_ARGS)

CHAOS := $(BIN)/python -m tests.support.chaos

chaos: setup kafka  ## Kill and pause batch workers everywhere, restart their servers (FULL=1: 10,000 kills)
	$(CHAOS) --all --kills $(if $(FULL),10000,1000) --pauses $(if $(FULL),500,50)
	$(CHAOS) --leases default --kills 20 --jobs 10
	$(CHAOS) --kind cluster --kills $(if $(FULL),1000,100) --pauses 10 \
		--restart postgres --restart kafka --restart s3 --joins 100
	HEADRACE_CHAOS=1 $(BIN)/python -m pytest tests/chaos/test_platform.py

triton: $(TRITON)/.requirements  ## Put a Triton into .venv/triton, for the tests and measurements

kafka: $(KAFKA)/.complete  ## Put Apache Kafka into .cache/kafka, for the tests (needs Java 17 or later and Maven)

lock: $(UV)  ## Recompile requirements/*.txt from pyproject.toml (LOCK_ARGS=--upgrade takes newer releases)
	$(COMPILE) pyproject.toml --all-extras --group dev $(LOCK_ARGS) --output-file requirements/dev.txt >/dev/null
	@# the runtime's pins are the ones that were tested
	$(COMPILE) pyproject.toml --constraints requirements/dev.txt $(LOCK_ARGS) --output-file requirements/runtime.txt >/dev/null
	$(COMPILE) requirements/triton.in --no-deps $(LOCK_ARGS) --output-file requirements/triton.txt >/dev/null

clean:  ## Remove the environment, the caches and what was built
	rm -rf $(VENV) .cache .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache build dist
	find $(CODE) -type d -name __pycache__ -prune -exec rm -rf {} +

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "headrace needs Python 3.11 or later, and '$(PYTHON)' is not one. Name another: make setup PYTHON=python3.12" >&2; \
		exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.requirements: requirements/dev.txt | $(VENV)/bin/python
	@echo "installing the pinned dependencies; the first time takes a few minutes"
	$(PIP) install --quiet --require-hashes --requirement requirements/dev.txt
	@touch $@

$(VENV)/.setup: $(VENV)/.requirements pyproject.toml
	$(PIP) install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

$(TRITON)/.requirements: requirements/triton.txt | $(VENV)/bin/python
	@mkdir -p $(TRITON) && rm -f $(TRITON)/missing
	@for python in $(TRITON_PYTHON); do \
		if "$$python" -c '$(TRITON_RUNS_ON)' 2>/dev/null; then \
			echo "installing Triton; the first time takes a minute" && \
			"$$python" -m venv $(TRITON) && \
			$(TRITON)/bin/python -m pip --disable-pip-version-check install --quiet \
				--require-hashes --no-deps --requirement $< && \
			touch $@; exit; \
		fi; \
	done; \
	echo "NO TRITON: it runs on Linux on x86-64, with a Python 3.11 or 3.12 that has its shared" \
		"library, and none of these is one: $(TRITON_PYTHON). Nothing is tested on a real" \
		"Triton. To name another: make triton TRITON_PYTHON=..." | tee $(TRITON)/missing >&2

$(KAFKA)/.complete: tests/support/kafka/pom.xml
	@rm -rf $(KAFKA) && mkdir -p $(KAFKA)
	@if ! java -version >/dev/null 2>&1 || ! mvn -version >/dev/null 2>&1; then \
		echo "NO KAFKA: there is no Java or no Maven here. Nothing is tested on Apache Kafka;" \
			"the same tests run on librdkafka's mock cluster" | tee $(KAFKA)/missing >&2; \
	elif echo "fetching Apache Kafka; the first time takes a minute" && \
		mvn --batch-mode --quiet --file $< $(MAVEN_COPY) -DincludeScope=runtime \
			-DoutputDirectory=$(abspath $(KAFKA)) >$(KAFKA)/log 2>&1 && \
		java -cp '$(KAFKA)/*' kafka.tools.StorageTool random-uuid >>$(KAFKA)/log 2>&1; then \
		touch $@; \
	else \
		tail -n 5 $(KAFKA)/log >&2; \
		echo "NO KAFKA: it was not fetched or does not run, see $(KAFKA)/log. Nothing is tested on Apache" \
			"Kafka; the same tests run on librdkafka's mock cluster" | tee $(KAFKA)/missing >&2; \
	fi

$(UV):
	$(PYTHON) -m venv .cache/uv-$(UV_VERSION)
	.cache/uv-$(UV_VERSION)/bin/python -m pip --disable-pip-version-check install --quiet uv==$(UV_VERSION)
