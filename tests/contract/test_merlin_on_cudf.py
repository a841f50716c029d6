"""Merlin on the real cuDF through the Merlin door, in processes that see a simulated GPU; and torch for a GPU.

`make gpu-contract` installs the requirements; without them the tests are skipped.
"""

from __future__ import annotations

import importlib.util
import os
import re
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


def run(code: str, hide: Sequence[str] = ()) -> None:
    environment = os.environ | {"RAPIDS_NO_INITIALIZE": "1"}
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
