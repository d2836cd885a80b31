# The two commands of the README are `make demo` and `make test`; both make what they need.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# PyTorch's wheels for CPUs alone are far smaller: make demo TORCH_INDEX=<the address of PyTorch's CPU index>
TORCH_INDEX ?=
PIP := $(BIN)/python -m pip --disable-pip-version-check
INSTALL := $(PIP) install --constraint constraints.txt $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX))

# make image IMAGE=registry.example/team/hpo-python:0.1.0 BASE=python:3.11-slim; BUILD_FLAGS are the builder's own
# make mnist-image MNIST_IMAGE=registry.example/team/mnist:1
IMAGE ?= kfp-hpo/hpo-python:$(shell sed -n 's/^__version__ = "\(.*\)"/\1/p' hpo_core/__init__.py)
MNIST_IMAGE ?= kfp-hpo/mnist:1
BASE ?=
BUILD_FLAGS ?=
BUILDER ?= $(shell docker info >/dev/null 2>&1 && echo docker || command -v podman || command -v buildah)

.PHONY: demo test lint types e2e e2e-full image mnist-image bench bench-cluster compile clean help

help:
	@echo "make demo     tune and retrain a digit classifier with the shipped pipeline, on this machine"
	@echo "make test     lint, types and tests"
	@echo "make e2e      tests that need more than Python: a browser, an S3 server, a cluster; CONTRIBUTING.md says how they are named"
	@echo "make e2e-full the same with every kill point in a cluster and the trainer's real image: twenty minutes more"
	@echo "make image    the image that components and tuners run in: make image IMAGE=registry.example/team/hpo-python:0.1.0"
	@echo "make mnist-image  the image of the trainer that the demo tunes, with PyTorch"
	@echo "make bench    what our own work costs"
	@echo "make bench-cluster  the same in a cluster: real pods, then 1,000 trials at 100 in parallel with fake ones"
	@echo "make compile  make the component and pipeline YAML anew"
	@echo "make clean    remove the environment, build files and the demo's records"

demo: $(VENV)/demo.stamp
	@$(BIN)/python -m pipelines.run_local manifests/experiments/mnist-random.yaml trainers/mnist

test: lint types
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 8 --dist loadfile

lint: $(VENV)/dev.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/dev.stamp
	$(BIN)/mypy

# They wait for a cluster most of the time, so they run beside each other; those that would suffer from it come after.
E2E = $(BIN)/python -m pytest tests -rs --durations=12 --durations-min=10
BESIDE = -m 'e2e and not last' --numprocesses 4
LAST = -m 'e2e and last'

e2e: $(VENV)/dev.stamp
	$(E2E) $(BESIDE); beside=$$?; $(E2E) $(LAST) && exit $$beside

e2e-full: export HPO_E2E_FULL=1
e2e-full: export HPO_E2E_KILL_STEP=1
e2e-full: e2e

BUILD = $(BUILDER) build $(if $(BASE),--build-arg BASE=$(BASE)) $(BUILD_FLAGS)
CAN_BUILD = test -n "$(BUILDER)" || { echo "an image is built by docker, podman or buildah, and none is here"; exit 1; }

image:
	@$(CAN_BUILD)
	$(BUILD) -f docker/Dockerfile -t $(IMAGE) .

mnist-image:
	@$(CAN_BUILD)
	$(BUILD) $(if $(TORCH_INDEX),--build-arg TORCH_INDEX=$(TORCH_INDEX)) -t $(MNIST_IMAGE) trainers/mnist

bench: $(VENV)/dev.stamp
	env -u PYTHONDONTWRITEBYTECODE $(BIN)/python -m tests.benchmarks.overhead
	$(BIN)/python -m tests.benchmarks.scale
	$(BIN)/python -m tests.benchmarks.report
	$(BIN)/python -m tests.benchmarks.hostile

bench-cluster: $(VENV)/dev.stamp
	$(BIN)/python -u -m tests.benchmarks.cluster

compile: $(VENV)/dev.stamp
	$(BIN)/python -m pipelines.compile

clean:
	rm -rf $(VENV) .hpo build dist *.egg-info local_outputs .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/pip.stamp:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or later is needed, $(PYTHON) is `$(PYTHON) --version`; try make PYTHON=python3.11"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/demo.stamp: $(VENV)/pip.stamp pyproject.toml constraints.txt
	@echo "installing what the demo needs: a few minutes the first time, PyTorch is large"
	$(INSTALL) --quiet --editable '.[kfp,mnist]'
	@touch $@

$(VENV)/dev.stamp: $(VENV)/pip.stamp pyproject.toml constraints.txt
	$(INSTALL) --quiet --editable '.[kfp,dev]'
	@touch $@
