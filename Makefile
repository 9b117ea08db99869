# make quickstart   set up .venv, then distil a SPLADE model from the Python documentation (2 cores: 11 minutes with
#                   AVX-512, 23 without)
# make test         set up .venv, then the tests that take under a minute each
# make test-slow    the long ones: chaos, scale, many processes
# make test-slurm   jobs on a real Slurm, which the tests start by themselves (as root; apt-get install slurm-wlm munge)
# make test-gpu     the tests of what runs on a GPU; the others hide it
# make gpu          ten minutes on a GPU: facts, its tests, speed, a whole run; results in benchmarks/results
# make lint         ruff (rules, format), import-linter (the layers), mypy
# make doctor       set up .venv, then check what this machine has: GPU, memory, disk, ports, model hub

VENV   ?= .venv
PYTHON ?= python3
RECIPE ?= configs/quickstart.yaml
ARGS   ?=

BIN := $(VENV)/bin
# Two processes with a thread each; a file of tests stays on one of them, and so does all of Ray (tests/conftest.py).
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadgroup
# Without an NVIDIA driver, pip is also offered PyTorch's CPU builds, which are a tenth of the size.
TORCH_INDEX := $(shell command -v nvidia-smi >/dev/null 2>&1 || echo "--extra-index-url https://download.pytorch.org/whl/cpu")

.PHONY: quickstart test test-slow test-slurm test-gpu gpu lint doctor setup clean

quickstart: setup
	$(BIN)/distill run $(RECIPE) $(ARGS)

test: setup
	$(PYTEST) -m "not slow and not slurm" $(ARGS)

test-slow: setup
	$(PYTEST) -m slow $(ARGS)

test-slurm: setup
	$(BIN)/python -m pytest -m slurm $(ARGS)

test-gpu: setup
	DISTILL_TEST_GPU=1 $(BIN)/python -m pytest -m gpu $(ARGS)

gpu: setup
	$(BIN)/python benchmarks/on_a_gpu.py $(ARGS)

lint: setup
	$(BIN)/ruff check . && $(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-logo
	$(BIN)/mypy

doctor: setup
	$(BIN)/distill doctor

setup: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --retries 1 $(TORCH_INDEX) -c constraints.txt torch
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[quickstart,test]"
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info
