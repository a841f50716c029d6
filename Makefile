# make demo | make test | make soak | make lint | make audit | make sbom | make setup [DEVICE=gpu] [PYTHON=python3.12] [TORCH_INDEX=<CPU wheel index>]
# make peers [PEERS="implicit cornac"] [TORCH_INDEX=<CPU wheel index>]
# make gpu-contract | make gpu-check [FLAGS="--only steps trace"] | make gpu-check DEVICE=cpu (a rehearsal)
VENV := .venv
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3.14 python3; do command -v $$p && break; done)
# A GPU environment stays one.
DEVICE ?= $(if $(wildcard $(VENV)/.ready-gpu*),gpu,cpu)
# A package index with CPU builds of torch, if the default one serves CUDA builds (README, set-up).
TORCH_INDEX ?=

BIN := $(VENV)/bin
LOCKS := $(filter-out requirements/uv.txt requirements/audit.txt,$(wildcard requirements/*.txt))
LOCKED := $(shell cat $(LOCKS) | cksum | tr ' ' -)
READY := $(VENV)/.ready-$(DEVICE)-$(LOCKED)
# On a GPU, torch is locked together with its CUDA libraries. On a CPU, pip installs it from an index that you may name,
# whose builds have hashes of their own; if it is a CUDA build all the same, its libraries are the locked ones.
TORCH := $(if $(filter gpu,$(DEVICE)),locked,indexed)
CUDA_LOCK := $(BIN)/python -c 'from importlib.metadata import requires; \
  print("-r requirements/torch-gpu.txt" * any("nvidia" in one for one in requires("torch")))'
# Wheels only: pip runs nothing of what it installs.
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --only-binary :all:
UV := $(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --compile-bytecode \
      --build-constraints requirements/build.txt
# A proxy that inspects TLS needs the system's certificates; pip uses them by default.
export UV_SYSTEM_CERTS := 1
AUDIT := .venv-audit
PACKAGES := workflows preprocessing model benchmark train.py tests docs

.PHONY: setup demo test soak gpu-contract gpu-check peers lint format lock audit licences sbom clean

setup: $(READY)

# Everything is installed with --no-deps from locked files: they are complete, and Merlin's own metadata cannot be
# resolved. When the locks change, the environment is rebuilt, so that no package of the old ones stays behind.
$(READY): $(LOCKS) pyproject.toml Makefile
	@case "$(DEVICE)" in cpu|gpu) ;; *) echo "DEVICE should be cpu or gpu, got $(DEVICE)" >&2; exit 2;; esac
	@test -n "$(PYTHON)" || { echo "no Python found; install Python 3.11 (3.12 to 3.14 work too)" >&2; exit 2; }
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14))' || \
	  { echo "$(PYTHON) is no Python 3.11 to 3.14; name one: make setup PYTHON=python3.11" >&2; exit 2; }
	ls $(VENV)/.ready-*-$(LOCKED) >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	@rm -f $(VENV)/.ready-*
	$(PIP) --require-hashes -r requirements/uv.txt
	$(if $(filter indexed,$(TORCH)),$(PIP) --no-deps $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) -r requirements/torch.txt)
	$(UV) --require-hashes -r requirements/$(DEVICE).txt -r requirements/merlin.txt -r requirements/sample.txt \
	  -r requirements/dev.txt $(if $(filter locked,$(TORCH)),-r requirements/torch-gpu.txt,$$($(CUDA_LOCK)))
	$(UV) --editable .
	$(BIN)/python -c 'import workflows.sampling.compiled, model.compiled.train_loops, model.compiled.score_loops'  # compiles them
	touch $@

demo: $(READY)
	$(BIN)/python -m benchmark demo

test: $(READY)
	$(BIN)/python -m pytest -n logical --maxprocesses 8 --dist worksteal

# Kills, full disks, freezes, leaks, 50,000 requests, mutated files, repeated; machine code of all fused kernels; all of
# the GPU check's rehearsal. Half an hour on 2 cores, longer on a busy machine.
# As root, full disks are small mounted ones, too. Ends at the first wrong outcome; docs/reliability.md.
soak: $(READY)
	$(BIN)/python -m pytest tests/soak tests/contract/test_fused_kernels_compile.py tests/model/serve/test_serve.py \
	  tests/test_hostile_files.py --soak --exitfirst
	$(MAKE) --no-print-directory gpu-check DEVICE=cpu FLAGS=--overwrite

# Checks the GPU set-up without a GPU (and with a CPU build of torch): imports, names, signatures, architectures.
CONTRACT := .venv-gpu-contract
RESOLVE := $(CONTRACT)/bin/uv pip compile --quiet --no-annotate --no-header --python-platform x86_64-manylinux_2_28
gpu-contract:
	@$(MAKE) --no-print-directory setup VENV=$(CONTRACT) DEVICE=gpu TORCH=indexed
	for python in 3.11 3.12 3.13 3.14; do $(RESOLVE) --python-version $$python requirements/gpu.txt \
	  requirements/torch-gpu.txt -o $(CONTRACT)/resolved-$$python.txt || exit 1; done
	CUDA_VISIBLE_DEVICES= RAPIDS_NO_INITIALIZE=1 \
	  $(CONTRACT)/bin/python -m pytest tests/contract tests/workflows/test_merlin_gaps.py

# Every check that needs a GPU, reported in gpu-report/. Without a GPU nothing is installed; DEVICE=cpu rehearses.
REHEARSED := $(filter command,$(origin DEVICE))$(filter cpu,$(DEVICE))
gpu-check:
	@test "$(REHEARSED)" = commandcpu || nvidia-smi -L >/dev/null 2>&1 || { echo "make gpu-check needs an NVIDIA GPU, \
	and nvidia-smi shows none; rehearse it on the CPU: make gpu-check DEVICE=cpu" >&2; exit 2; }
	@$(MAKE) --no-print-directory setup DEVICE=$(if $(filter commandcpu,$(REHEARSED)),cpu,gpu)
	$(BIN)/python -m benchmark gpu-check $(if $(filter commandcpu,$(REHEARSED)),--device cpu --small) $(FLAGS)

# Other recommenders, for `python -m benchmark peers`: an environment each, .venv-peers/NAME. One that cannot be
# installed is left out and named in the end.
PEERS ?=
peers: $(READY)
	$(BIN)/python -m benchmark.peers.install $(PEERS) $(if $(TORCH_INDEX),--torch-index $(TORCH_INDEX))

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

# Re-resolves the locked files (after a change to a .in file); FLAGS=--upgrade takes newer releases.
# torch's CUDA build comes first, since it pins its CUDA libraries exactly.
LOCK := ../$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes $(FLAGS)
lock: $(READY)
	cd requirements && $(LOCK) torch.txt -o torch-gpu.txt && $(LOCK) gpu.in -c torch-gpu.txt -o gpu.txt && \
	  $(LOCK) cpu.in -c gpu.txt -o cpu.txt && $(LOCK) dev.in -o dev.txt && $(LOCK) build.in -c cpu.txt -o build.txt && \
	  $(LOCK) --no-deps merlin.in -o merlin.txt && $(LOCK) --no-deps sample.in -o sample.txt && \
	  $(LOCK) uv.in -o uv.txt && $(LOCK) audit.in -o audit.txt
	cd requirements/peers && for peer in *.in; do ../$(LOCK) --config-file uv.toml --no-emit-package torch $$peer \
	  -o $${peer%.in}.txt || exit 1; done

# Advisories about the locked versions; those in the table of SECURITY.md are known. It needs PyPI's own JSON interface:
# a mirror without it ends the audit with an error.
KNOWN := sed -n 's/^| \(\(CVE\|GHSA\|PYSEC\)-[0-9A-Za-z-]*\) |.*/--ignore-vuln \1/p' SECURITY.md
audit:
	$(PYTHON) -m venv --clear $(AUDIT)
	$(AUDIT)/bin/python $(wordlist 2,99,$(PIP)) --require-hashes -r requirements/audit.txt
	for lock in cpu gpu torch-gpu merlin sample dev build uv audit; do $(AUDIT)/bin/pip-audit --strict --disable-pip \
	  --require-hashes --requirement requirements/$$lock.txt $$($(KNOWN)) || exit 1; done

# The licences of the packages that are installed, in any of the environments, go into docs/licences.md.
licences: $(READY)
	$(BIN)/python docs/packages.py $(wildcard $(CONTRACT)/lib/python*/site-packages $(AUDIT)/lib/python*/site-packages)

# Software bills of materials of the locked packages: sbom/cpu.cdx.json, sbom/gpu.cdx.json (CycloneDX 1.6).
sbom: $(READY)
	$(BIN)/python docs/packages.py --sbom sbom

clean:
	rm -rf $(VENV) $(CONTRACT) $(AUDIT) .venv-peers sbom data/ml-100k runs/ml-100k runs/ml-100k-recipe
