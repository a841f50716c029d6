"""Checks of the machine: its hardware and software, and the tests that need a GPU."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version

from benchmark.common.machine import describe_machine
from benchmark.common.program import ROOT
from benchmark.gpu_check.findings import Findings, NotPossibleError, Settings, need, run_check
from workflows.device.facts import compile_kernels, cudf_version, gpu_memory, memory_pool
from workflows.device.frames import frame_device

_TESTS = "tests/gpu"
_QUERY = "name,driver_version,memory.total,compute_cap,pstate,clocks.max.sm,power.limit"
_PACKAGES = ("cupy-cuda13x", "cudf-cu13", "dask-cudf-cu13", "rmm-cu13", "dask-cuda", "numba", "triton", "pytest")


def environment(settings: Settings, found: Findings) -> None:
    """Report GPUs, driver, versions, compiler and memory; check that torch computes on the device, and cuDF imports."""
    import torch

    from workflows.device.torch_device import torch_device

    cuda = torch.version.cuda
    found.facts |= {"machine": describe_machine(), "torch": torch.__version__, "CUDA of torch": cuda}
    found.facts["packages"] = {name: reported for name in _PACKAGES if (reported := _version(name))}
    try:
        query = ["nvidia-smi", f"--query-gpu={_QUERY}", "--format=csv"]
        reported = subprocess.run(query, capture_output=True, text=True, check=True, timeout=60).stdout
        found.facts["GPUs"] = reported.strip().splitlines()
    except (OSError, subprocess.SubprocessError) as err:
        found.left_out["GPUs"] = f"nvidia-smi failed ({err})"
    device = torch_device(settings.device, None)
    with found.attempt(f"sums on {device}"):
        numbers = torch.arange(1000, device=device)
        found.equal(f"sums on {device}", numbers.cumsum(0).cpu().numpy(), torch.arange(1000).cumsum(0).numpy())
    found.facts["memory of GPUs"] = gpu_memory()
    if settings.rehearsal:
        found.left_out["NVRTC, memory pool, cuDF"] = "need an NVIDIA GPU"
        return
    os.environ["CUPY_CACHE_DIR"] = str(settings.work / "cupy")  # nothing has been compiled before
    asked = (("cudf", "cuDF", cudf_version), ("rmm", "memory pool", _pool), ("cupy", "NVRTC", compile_kernels))
    for module, name, ask in asked:
        with found.attempt(name):
            need(module, {"cupy": "CuPy", "rmm": "RMM"}.get(module, name))
            found.facts[name] = ask()


def _pool() -> str:
    frame_device("cuda")  # sets it up
    return memory_pool()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def tests(settings: Settings, found: Findings) -> None:
    """Run the tests marked `gpu`."""
    need("pytest", "pytest")
    if not (ROOT / _TESTS).is_dir():  # container images have no tests
        raise NotPossibleError(f"there is no {_TESTS} in {ROOT}")
    command = [sys.executable, "-m", "pytest", "-m", "gpu", _TESTS, "--gpu-device", settings.device, "-rsf"]
    done = subprocess.run(command, cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    print(done.stdout, done.stderr, flush=True)
    lines = done.stdout.splitlines()
    found.facts |= {"pytest": lines[-1] if lines else done.stderr[-500:]}
    skipped = [line.removeprefix("SKIPPED ").rpartition(": ") for line in lines if line.startswith("SKIPPED ")]
    found.left_out = {where: why for where, _, why in skipped}
    found.close("exit status of pytest", done.returncode, 0, 0.0)


if __name__ == "__main__":
    run_check({"environment": environment, "tests": tests})
