"""Commands on a machine whose driver or GPU libraries are broken: simulated, in processes of their own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
REFUSAL = "cuDF dislikes this driver"
LIBRARIES = {
    "cudf/__init__.py": f"""
import os
with open(os.environ["IMPORTED"], "a") as file:
    file.write("cudf ")
raise RuntimeError({REFUSAL!r} + chr(10) + "and says why at length")
""",
    "cupy/__init__.py": """
import os
from types import SimpleNamespace
with open(os.environ["IMPORTED"], "a") as file:
    file.write("cupy ")
ndarray = type("ndarray", (), {})  # for Dask
cuda = SimpleNamespace(
    runtime=SimpleNamespace(getDeviceCount=lambda: 1), Device=lambda _: SimpleNamespace(use=lambda: None)
)
""",
    # Of the driver's own library: with a version that does not match the driver's, every call fails.
    "pynvml.py": """
import os
class NVMLError(Exception): pass
class NVMLError_LibraryNotFound(NVMLError): pass
class NVMLError_DriverNotLoaded(NVMLError): pass
class NVMLError_Unknown(NVMLError): pass
def nvmlInit():
    if "MISMATCH" in os.environ:
        raise NVMLError("Driver/library version mismatch")
def nvmlDeviceGetCount():
    return 1
""",
}

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Run Python on that machine; `stdout` ends with the GPU libraries that it has tried to import."""
    for name, code in LIBRARIES.items():
        path = tmp_path / "libraries" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(code)

    def run(*argv: str, **variables: str) -> subprocess.CompletedProcess[str]:
        imported = tmp_path / "imported"
        imported.write_text("")
        environment = {
            **{name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"},
            "PYTHONPATH": os.pathsep.join([str(tmp_path / "libraries"), str(ROOT)]),
            "IMPORTED": str(imported),
            **variables,
        }
        done = subprocess.run([sys.executable, *argv], cwd=tmp_path, capture_output=True, text=True, env=environment)
        done.stdout += imported.read_text()
        return done

    return run


def test_the_cpu_is_used_without_a_look_at_the_gpu(run: Run, tmp_path: Path) -> None:
    prepare = [
        "-m",
        "preprocessing",
        "--synthetic",
        "60x50x900",
        "--test-negatives",
        "3",
        "--output",
        "data",
        "--device",
        "cpu",
    ]
    done = run(*prepare, MISMATCH="1")
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("in data\n")  # no library was imported
    flags = ["--data", "data", "--device", "cpu", "-e", "1", "-f", "4", "--layers", "8", "4", "-k", "2"]
    trained = run(str(ROOT / "train.py"), *flags, MISMATCH="1")
    assert trained.returncode == 0, trained.stderr
    assert not re.search("cudf|cupy", trained.stdout)


def test_auto_uses_the_cpu_and_says_why_in_one_line(run: Run) -> None:
    flags = ["--synthetic", "60x50x900", "--test-negatives", "3", "--output", "data"]
    done = run("-m", "preprocessing", *flags)
    assert done.returncode == 0, done.stderr
    said = [line for line in done.stdout.splitlines() if "dataframes use the CPU" in line]
    assert said == [f"dataframes use the CPU: cuDF or CuPy fails (RuntimeError: {REFUSAL})"]
    assert done.stdout.endswith("cupy cudf ")  # once


def test_a_gpu_that_is_asked_for_is_an_error_with_the_same_reason(run: Run, tmp_path: Path) -> None:
    done = run("-m", "preprocessing", "--sample", "ml-100k", "--output", "data", "--device", "cuda")
    assert done.returncode == 2
    assert f"--device cuda: cuDF or CuPy fails (RuntimeError: {REFUSAL})" in done.stderr
    assert "--device cpu" in done.stderr
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("driver", [{}, {"MISMATCH": "1"}])
def test_merlin_runs_on_pandas_in_a_process_that_has_chosen_no_device(run: Run, driver: dict[str, str]) -> None:
    done = run("-c", "import workflows.merlin as door; assert not door.merlin.core.has_gpu.HAS_GPU", **driver)
    assert done.returncode == 0, done.stderr
    if driver:
        assert done.stdout.split() == ["cupy"]
        return
    assert done.stdout.split() == ["cupy", "cudf"]  # Dask imports CuPy
