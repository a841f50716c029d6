"""Merlin on the real cuDF through the Merlin door, in processes that see a simulated GPU; and torch for a GPU.

`make gpu-contract` installs the requirements; without them the tests are skipped.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

needs_cudf = pytest.mark.skipif(
    importlib.util.find_spec("cudf") is None, reason="cuDF is not installed; `make gpu-contract` installs and checks it"
)
RESOLVED = sorted(Path(sys.prefix).glob("resolved-*.txt"))  # `make gpu-contract` writes them

SEE_A_GPU = """
import warnings
warnings.simplefilter("ignore")
from dask.distributed.diagnostics import nvml
nvml.device_get_count = lambda: 1  # how Merlin asks, where CUDA_VISIBLE_DEVICES hides none
"""
ON_CUDF = """
import sys
import workflows.merlin as door
from merlin.core import compat, dispatch
import merlin.io.dataframe_engine, merlin.io.fsspec_utils
import nvtabular.ops

assert compat.HAS_GPU
assert all(library is not None for library in (compat.cudf, compat.dask_cudf, compat.cupy, dispatch.rmm))
stubs = (
    dispatch.build_column,
    merlin.io.fsspec_utils.build_categorical_column,
    merlin.io.dataframe_engine.dask_cudf.from_dask_dataframe,
)
for stub, name in zip(stubs, ("build_column", "build_categorical_column", "from_dask_dataframe")):
    try:
        stub(1, size=2)
    except NotImplementedError as err:
        assert f".{name} no longer exists" in str(err)
    else:
        raise SystemExit(f"{name} is no stub")
assert compat.cudf.DataFrame in vars(nvtabular.Workflow)["transform"].dispatcher.registry
"""
LOADER = """
from merlin.dataloader import loader_base

assert issubclass(door.loader_class(), loader_base.LoaderBase)
assert loader_base.cudf is compat.cudf and loader_base.cupy is compat.cupy
"""
ON_PANDAS = """
import numpy as np
import pandas as pd
from workflows.operators.encode import EncodeIds
from workflows.operators.leave_one_out import LeaveOneOut

rng = np.random.default_rng(0)
log = pd.DataFrame({name: rng.integers(0, high, 300) for name, high in (("user", 9), ("item", 40), ("time", 99))})
dataset = door.frame_dataset(lambda _: log, 1, meta=log.iloc[:0], cpu=True)
encoder = EncodeIds(keep=["time"])
door.Workflow(list(log) >> encoder).fit(dataset)
workflow = door.Workflow((list(log) >> encoder) >> LeaveOneOut(encoder, "user", "item", "time", test_negatives=5))
workflow.fit(dataset)
rows = workflow.transform(dataset)
with door.loader_class()(rows, batch_size=50, shuffle=False) as loader:
    read = sum(len(columns["user"]) for columns, _ in loader)
assert read == len(log.drop_duplicates(["user", "item"])) + 9 * 5, read
"""


def run(code: str, hide: Sequence[str] = (), **variables: str) -> None:
    environment = os.environ | {"RAPIDS_NO_INITIALIZE": "1"} | variables
    for name in ("CUDA_VISIBLE_DEVICES", *hide):
        environment.pop(name, None)
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment)
    assert ended.returncode == 0, ended.stderr


@needs_cudf
def test_merlin_and_nvtabular_import_on_cudf_without_torch() -> None:
    run(SEE_A_GPU + ON_CUDF + "assert 'torch' not in sys.modules")


@needs_cudf
def test_the_loader_can_be_imported_on_cudf() -> None:
    run("import torch\n" + SEE_A_GPU + ON_CUDF + LOADER)


@needs_cudf
def test_a_cpu_workflow_does_not_touch_a_visible_gpu() -> None:
    # --device cpu on a machine with a GPU: the GPU is simulated, so any use of it would fail.
    run("import torch\n" + SEE_A_GPU + ON_CUDF + ON_PANDAS)


@needs_cudf
def test_merlin_cannot_be_imported_without_the_door() -> None:
    with pytest.raises(
        AssertionError, match=r"cannot import name 'hash_object_dispatch' from 'dask\.dataframe\.utils'"
    ):
        run(SEE_A_GPU + "import nvtabular")


@needs_cudf
def test_cupy_finds_its_compiler_without_torch() -> None:
    # A preprocessing process does not load torch, whose libraries CuPy 13 relied on in the absence of a CUDA toolkit.
    run(
        "import sys; sys.modules['torch'] = None\n"
        "import cupy\n"
        "from cupy_backends.cuda.libs import nvrtc\n"
        "assert nvrtc.getVersion()[0] == 13\n"
        "loaded = [line.split()[-1] for line in open('/proc/self/maps') if 'libnvrtc' in line]\n"
        "assert loaded and all(path.startswith(sys.prefix) for path in loaded), loaded\n",
        hide=("CUDA_PATH", "CUDA_HOME", "LD_LIBRARY_PATH"),
    )


DRIVER = """
#include <stdlib.h>
#include <dlfcn.h>

int cuDriverGetVersion(int *version) { *version = atoi(getenv("DRIVER")); return 0; }
int cuInit(unsigned flags) { return 0; }
int cuDeviceGetCount(int *count) { *count = 1; return 0; }
int cuGetErrorName(int error, const char **text) { *text = "CUDA_ERROR_STUB"; return 0; }
int cuGetErrorString(int error, const char **text) { *text = "a stub"; return 0; }
int cuGetProcAddress_v2(const char *name, void **found, int version, unsigned long flags, int *status) {
    *found = dlsym(RTLD_DEFAULT, name);
    void *self = dlopen("libcuda.so.1", RTLD_NOLOAD | RTLD_LAZY);
    if (!*found && self) *found = dlsym(self, name);
    if (status) *status = *found ? 0 : 1;
    return *found ? 0 : 500;
}
int cuGetProcAddress(const char *name, void **found, int version, unsigned long flags) {
    return cuGetProcAddress_v2(name, found, version, flags, 0);
}
"""
WITH_A_DRIVER = """
import ctypes, os, warnings
warnings.simplefilter("ignore")
seen = ctypes.c_int()
ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(seen))
assert seen.value == int(os.environ["DRIVER"])
"""


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a driver library that answers which version it is, and does nothing else."""
    folder = tmp_path_factory.mktemp("driver")
    if shutil.which("gcc") is None:
        pytest.skip("there is no C compiler")
    (folder / "driver.c").write_text(DRIVER.replace("#include", "#define _GNU_SOURCE\n#include", 1))
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", folder / "libcuda.so.1", folder / "driver.c", "-ldl"], check=True)
    return folder


@needs_cudf
@pytest.mark.parametrize("version", ["12040", "12080", "13000", "13010"])
def test_cudf_imports_with_any_driver(driver: Path, version: str) -> None:
    # cuDF 24.12 refused drivers before CUDA 12.5 when imported. cuDF 26.10 has no check of versions at import.
    run(
        WITH_A_DRIVER + "import cudf, cupy\n"
        "from rmm.allocators.cupy import rmm_cupy_allocator\n"
        "assert cupy.cuda.get_allocator() is rmm_cupy_allocator\n",
        hide=("RAPIDS_NO_INITIALIZE",),
        LD_LIBRARY_PATH=str(driver),
        DRIVER=version,
    )


@needs_cudf
@pytest.mark.parametrize("version", ["12040", "12080", "13000"])
def test_with_a_driver_that_does_not_work_the_cpu_is_used_and_the_reason_said(driver: Path, version: str) -> None:
    run(
        WITH_A_DRIVER + "import contextlib, io, sys\n"
        "from workflows.common.errors import UserError\n"
        "from workflows.common.progress import console\n"
        "from workflows.device.frames import cpu_only, frame_device\n"
        "console.file = said = io.StringIO()\n"
        "assert frame_device('auto') == frame_device('auto') and cpu_only()\n"
        "assert said.getvalue().count('dataframes use the CPU: cuDF or CuPy fails (CUDARuntimeError: cudaError') == 1\n"
        "assert said.getvalue().count('\\n') == 1\n"
        "try: frame_device('cuda')\n"
        "except UserError as err: assert 'CUDARuntimeError' in str(err) and '--device cpu' in str(err)\n"
        "else: raise SystemExit('cuda without a GPU')\n"
        "import workflows.merlin\n"
        "assert 'cudf' not in sys.modules and not workflows.merlin.merlin.core.has_gpu.HAS_GPU\n",
        LD_LIBRARY_PATH=str(driver),
        DRIVER=version,
    )


@needs_cudf
def test_the_cpu_is_used_without_importing_gpu_libraries() -> None:
    run(
        SEE_A_GPU + "import sys\n"
        "from workflows.device.frames import frame_device\n"
        "frame_device('cpu')\n"
        + "import torch\nimport workflows.merlin as door\n"
        + ON_PANDAS
        + "assert not {'cudf', 'cupy', 'dask_cudf'} & set(sys.modules)\n"
    )


@needs_cudf
def test_rmm_takes_the_handle_of_a_pool_from_cuda_bindings() -> None:
    run(
        "import rmm\n"
        "from cuda.bindings import runtime\n"
        "for handle, expected in ((4096, ValueError), (runtime.cudaMemPool_t(4096), RuntimeError)):\n"
        "    try: rmm.mr.CudaAsyncViewMemoryResource(handle)\n"
        "    except expected as err: assert expected is ValueError or 'CUDA driver' in str(err)\n"
        "    else: raise SystemExit('a pool without a driver')\n"
    )


@needs_cudf
def test_cupy_sorts_along_an_empty_axis() -> None:
    # CuPy up to 14.0 divided by the axis' length. Nothing is launched, so it shows without a GPU.
    run(
        "import cupy\n"
        "nowhere = cupy.cuda.MemoryPointer(cupy.cuda.UnownedMemory(0, 0, None, 0), 0)\n"
        "cupy.ndarray((3, 0), dtype='int64', memptr=nowhere).sort(axis=1)\n"
    )


@pytest.mark.skipif(not RESOLVED, reason="`make gpu-contract` resolves the GPU's requirements")
def test_gpu_torch_shares_the_cuda_13_libraries_of_cudf() -> None:
    assert [path.stem for path in RESOLVED] == [f"resolved-3.{minor}" for minor in (11, 12, 13, 14)]
    for path in RESOLVED:
        packages = dict(re.findall(r"^([\w.-]+)==(\S+)", path.read_text(encoding="utf-8"), re.MULTILINE))
        assert {"torch", "triton", "cudf-cu13", "cupy-cuda13x", "nvidia-cuda-nvrtc", "nvidia-nccl-cu13"} <= set(
            packages
        )
        assert packages["nvidia-cuda-runtime"].startswith("13.")
        assert not [name for name in packages if re.search(r"-cu(da)?1[12]x?$", name)]
        assert tuple(map(int, packages["torch"].split("+")[0].split("."))) >= (2, 13)
