# make demo | make test | make soak | make lint | make setup [DEVICE=gpu] [PYTHON=python3.12] [TORCH_INDEX=<CPU wheel index>]
# make gpu-contract | make gpu-check [FLAGS="--only steps trace"] | make gpu-check DEVICE=cpu (a rehearsal)
VENV := .venv
PYTHON ?= $(shell for p in python3.11 python3.12 python3.10 python3; do command -v $$p && break; done)
# A set-up for a GPU stays one.
DEVICE ?= $(if $(wildcard $(VENV)/.ready-gpu),gpu,cpu)
# A package index that serves CPU builds of torch, where the default one serves CUDA builds (README, set-up).
TORCH_INDEX ?=
UV_VERSION := 0.13.9

BIN := $(VENV)/bin
LOCKS := requirements/cpu.txt requirements/gpu.txt requirements/dev.txt requirements/merlin.txt \
         requirements/sample.txt requirements/torch.txt requirements/torch-gpu.txt
READY := $(VENV)/.ready-$(DEVICE)
TORCH := $(if $(filter gpu,$(DEVICE)),requirements/torch-gpu.txt,requirements/torch.txt)
PACKAGES := workflows preprocessing model benchmark train.py tests

.PHONY: setup demo test soak gpu-contract gpu-check lint format lock clean

setup: $(READY)

# Everything is installed with --no-deps from locked files: they are complete, and Merlin's own metadata
# could not be resolved. torch alone comes by pip, whose index may be another one, and with its dependencies.
$(READY): $(LOCKS) pyproject.toml Makefile
	@case "$(DEVICE)" in cpu|gpu) ;; *) echo "DEVICE should be cpu or gpu, got $(DEVICE)" >&2; exit 2;; esac
	@test -n "$(PYTHON)" || { echo "no Python found; install Python 3.11 (3.10 and 3.12 work too)" >&2; exit 2; }
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' || \
	  { echo "$(PYTHON) is no Python 3.10, 3.11 or 3.12; name one: make setup PYTHON=python3.11" >&2; exit 2; }
	rm -f $(VENV)/.ready-*
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet uv==$(UV_VERSION)
	$(BIN)/python -m pip install --quiet $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) \
	  --constraint requirements/$(DEVICE).txt -r $(TORCH)
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --compile-bytecode \
	  -r requirements/$(DEVICE).txt -r requirements/merlin.txt -r requirements/sample.txt -r requirements/dev.txt
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --editable .
	$(BIN)/python -c 'import workflows.kernels, model.kernels'  # compiles them, once
	touch $@

demo: $(READY)
	$(BIN)/python -m benchmark demo

test: $(READY)
	$(BIN)/python -m pytest

# Freezes and kills, many times over; about half an hour.
soak: $(READY)
	$(BIN)/python -m pytest tests/test_soak.py --soak

# The set-up for a GPU, but for its torch, checked without one: imports, names, signatures, and which torch it takes.
CONTRACT := .venv-gpu-contract
RESOLVE := $(CONTRACT)/bin/uv pip compile --quiet --no-annotate --no-header --python-platform x86_64-manylinux_2_28
gpu-contract:
	@$(MAKE) --no-print-directory setup VENV=$(CONTRACT) DEVICE=gpu TORCH=requirements/torch.txt
	for python in 3.10 3.11 3.12; do $(RESOLVE) --python-version $$python requirements/gpu.txt \
	  requirements/torch-gpu.txt -o $(CONTRACT)/resolved-$$python.txt || exit 1; done
	$(RESOLVE) --python-version 3.11 requirements/gpu.txt requirements/torch.txt -o $(CONTRACT)/resolved-cpu-torch.txt
	CUDA_VISIBLE_DEVICES= RAPIDS_NO_INITIALIZE=1 \
	  $(CONTRACT)/bin/python -m pytest tests/contract tests/workflows/test_merlin_cudf.py

# All that only a GPU can tell, into gpu-report/. Where there is none, nothing is set up for one; DEVICE=cpu rehearses.
REHEARSED := $(filter command,$(origin DEVICE))$(filter cpu,$(DEVICE))
gpu-check:
	@test "$(REHEARSED)" = commandcpu || nvidia-smi -L >/dev/null 2>&1 || { echo "make gpu-check needs an NVIDIA GPU, \
	and nvidia-smi shows none; rehearse it on the CPU: make gpu-check DEVICE=cpu" >&2; exit 2; }
	@$(MAKE) --no-print-directory setup DEVICE=$(if $(filter commandcpu,$(REHEARSED)),cpu,gpu)
	$(BIN)/python -m benchmark gpu-check $(if $(filter commandcpu,$(REHEARSED)),--device cpu --small) $(FLAGS)

lint: $(READY)
	$(BIN)/ruff check $(PACKAGES)
	$(BIN)/ruff format --check $(PACKAGES)
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/codespell
	$(BIN)/shellcheck docker/*.sh docker/slurm.sub .ci/run
	$(BIN)/hadolint docker/Dockerfile docker/cpu.Dockerfile

format: $(READY)
	$(BIN)/ruff check --fix $(PACKAGES)
	$(BIN)/ruff format $(PACKAGES)

# Resolve the locked files anew (after a change of a .in file).
lock: $(READY)
	cd requirements && for name in cpu gpu dev; do \
	  ../$(BIN)/uv pip compile --quiet --universal --python-version 3.10 $$name.in -o $$name.txt || exit 1; done

clean:
	rm -rf $(VENV) $(CONTRACT) data/ml-100k runs/ml-100k
