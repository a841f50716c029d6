"""Dataframes and arrays: pandas and NumPy on a CPU, cuDF and CuPy on a GPU.

`frame_device` decides once per process: it looks for a GPU, gives it a memory pool and lets it compute before anything
relies on it.
"""

from __future__ import annotations

import ctypes
import functools
import importlib
import importlib.util
import logging
import os
import sys
from dataclasses import dataclass
from multiprocessing import resource_tracker
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow as pa
from array_api_compat import array_namespace

from workflows.common.errors import UserError
from workflows.common.progress import console
from workflows.device.loops import COMPILED_ROWS

_HIDDEN, _NO_CUDF = "no GPU is visible (CUDA_VISIBLE_DEVICES)", "cuDF is not installed"
_LOOPBACK = "127.0.0.1"
_KEPT_BYTES = 2**64 - 1  # the pool returns memory to the driver above this; an allocation otherwise waits for the GPU


@dataclass(frozen=True)
class FrameDevice:
    """Where dataframes live: pandas and NumPy on a CPU, cuDF and CuPy on a GPU.

    Attributes:
        index: of the GPU, among the visible ones; 0 on a CPU.
    """

    on_cpu: bool
    index: int = 0

    def open(self) -> FrameDevice:
        """Prepare this process and this thread, as `frame_device` does; for processes that are sent a device.

        Raises:
            UserError: it is a GPU that does not work here.
        """
        if reason := "" if self.on_cpu else _gpu_fails(self.index):
            raise UserError(f"--device cuda: {reason}")
        _opened.add(self)
        self.use()
        return self

    def use(self) -> None:
        """Make this thread compute on the device: in CuPy and cuDF, each thread has a current GPU, at first GPU 0."""
        if not self.on_cpu:
            cupy = importlib.import_module("cupy")
            cupy.cuda.Device(self.index).use()

    def trim(self) -> None:
        """Return the unused memory of the GPU's pool to the driver, for torch, which allocates elsewhere."""
        if not self.on_cpu:
            cupy = importlib.import_module("cupy")
            cupy.cuda.runtime.memPoolTrimTo(cupy.cuda.runtime.deviceGetDefaultMemPool(self.index), 0)

    def free_bytes(self) -> int:
        """Memory of a GPU that can still be allocated, including what its pool holds unused."""
        cupy = importlib.import_module("cupy")
        with cupy.cuda.Device(self.index):
            free, _ = cupy.cuda.runtime.memGetInfo()
        pool = cupy.cuda.runtime.deviceGetDefaultMemPool(self.index)
        reserved = cupy.cuda.runtime.memPoolGetAttribute(pool, cupy.cuda.runtime.cudaMemPoolAttrReservedMemCurrent)
        used = cupy.cuda.runtime.memPoolGetAttribute(pool, cupy.cuda.runtime.cudaMemPoolAttrUsedMemCurrent)
        return int(free + reserved - used)

    @property
    def frames(self) -> ModuleType:
        """Imported lazily: pandas takes a quarter of a second."""
        return importlib.import_module("pandas" if self.on_cpu else "cudf")

    @property
    def arrays(self) -> ModuleType:
        return importlib.import_module("numpy" if self.on_cpu else "cupy")

    def from_arrow(self, table: pa.Table) -> Any:
        """A dataframe on this device."""
        return table.to_pandas() if self.on_cpu else self.frames.DataFrame.from_arrow(table)

    def from_columns(self, columns: dict[str, Any]) -> Any:
        """A dataframe from NumPy arrays or arrays of this device, possibly without a copy."""
        if self.on_cpu:
            return self.frames.DataFrame(columns, copy=False)
        return self.frames.DataFrame({name: self.arrays.asarray(values) for name, values in columns.items()})

    def to_arrow(self, df: Any) -> pa.Table:
        """A dataframe on this device (a numeric one on a CPU) as an Arrow table on the host, without its index."""
        if self.on_cpu:
            return pa.table({name: df[name].to_numpy() for name in df.columns})
        return df.to_arrow(preserve_index=False).replace_schema_metadata()

    def compiles(self, rows: int) -> bool:
        """Whether partitions of this many rows use `host_loops`."""
        return self.on_cpu and rows >= COMPILED_ROWS

    def local_cluster(self, workers: int) -> Any:
        """A Dask cluster of worker processes on this machine, each with one GPU or one CPU thread.

        Nothing of it listens on a network: whoever reaches a Dask process can run code in it.
        """
        dashboard, logs = f"{_LOOPBACK}:0", logging.CRITICAL  # Dask would log errors that are also raised
        if self.on_cpu:
            from distributed import LocalCluster

            resource_tracker.ensure_running()  # before the first semaphore, which it removes if this process is killed
            return LocalCluster(  # type: ignore[no-untyped-call]
                n_workers=workers,
                threads_per_worker=1,
                memory_limit=0,
                host=_LOOPBACK,
                dashboard_address=dashboard,
                silence_logs=logs,
            )
        cuda = importlib.import_module("dask_cuda")
        return cuda.LocalCUDACluster(n_workers=workers, host=_LOOPBACK, dashboard_address=dashboard, silence_logs=logs)


_opened: set[FrameDevice] = set()  # by this process


def cpu_only() -> bool:
    """Whether this process has chosen a device for dataframes, and it is the CPU."""
    return bool(_opened) and all(device.on_cpu for device in _opened)


def frame_device(name: str, index: int = 0) -> FrameDevice:
    """Pick the dataframe library, and prepare this process and this thread for it.

    Args:
        name: "cpu", "cuda", or "auto" (the GPU if cuDF and CuPy compute on it, else the CPU, which is said in one line
            if cuDF or a driver is installed). With "cpu" neither library is imported.
        index: the GPU among the visible ones.

    Raises:
        UserError: "cuda" without cuDF, or without a GPU that works.
    """
    missing = _frames_gpu_missing(index) if name != "cpu" else "not asked for"
    if name == "cuda" and missing:
        raise UserError(
            f"--device cuda: {missing}; set up with `make setup DEVICE=gpu` on a machine with an NVIDIA GPU, "
            "or run on the CPU with --device cpu"
        )
    if name == "auto" and missing and missing != _HIDDEN and (missing != _NO_CUDF or _has_driver()):
        _say(f"dataframes use the CPU: {missing}")
    return FrameDevice(on_cpu=True).open() if missing else FrameDevice(on_cpu=False, index=index).open()


_say = functools.cache(console.print)  # once per process


def _has_driver() -> bool:
    """Whether this machine has NVIDIA's driver."""
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return True


def _frames_gpu_missing(index: int) -> str:
    """Why dataframes cannot live on a GPU; empty if they can."""
    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return _HIDDEN
    if importlib.util.find_spec("cudf") is None or importlib.util.find_spec("cupy") is None:
        return _NO_CUDF
    return _gpu_fails(index)


@functools.cache
def _gpu_fails(index: int) -> str:
    """Load the GPU's libraries, set its memory pool and compute on it; why that failed, or nothing."""
    try:
        cupy = importlib.import_module("cupy")
        count = cupy.cuda.runtime.getDeviceCount()
        if index >= count:
            return f"no GPU {index} is visible (there are {count})" if count else "no GPU is visible"
        cupy.cuda.Device(index).use()
        cudf = importlib.import_module("cudf")  # also makes CuPy allocate from RMM
        _set_memory_pool(index)
        numbers = cupy.arange(4)  # compiled at run time by NVRTC, as most kernels of CuPy are
        computed = int(cupy.sum(numbers)), int(cudf.Series(numbers).max())
    except Exception as err:  # whatever a driver, a version check at import or a compiler raises
        # CUDA's and cuDF's messages may be pages long.
        return f"cuDF or CuPy fails ({type(err).__name__}: {str(err).strip().partition(chr(10))[0][:300]})"
    return "" if computed == (6, 3) else f"GPU {index} computes wrong sums and maxima: {computed}"


def _set_memory_pool(index: int) -> None:
    """Let cuDF and CuPy allocate from the GPU's own asynchronous pool, without waiting for the GPU.

    The pool takes nothing in advance, since torch, with an allocator of its own, may share the GPU; it keeps what it
    has once needed. Without it each temporary array is a cudaMalloc and a cudaFree, which waits for all kernels.
    """
    cupy = importlib.import_module("cupy")
    rmm = importlib.import_module("rmm")
    runtime = importlib.import_module("cuda.bindings.runtime")
    pool = cupy.cuda.runtime.deviceGetDefaultMemPool(index)
    cupy.cuda.runtime.memPoolSetAttribute(pool, cupy.cuda.runtime.cudaMemPoolAttrReleaseThreshold, _KEPT_BYTES)
    rmm.mr.set_per_device_resource(index, rmm.mr.CudaAsyncViewMemoryResource(runtime.cudaMemPool_t(pool)))


def to_host(values: Any) -> np.ndarray:
    """An array or column of any library as a NumPy array; the only device-to-host copy."""
    if isinstance(values, np.ndarray):
        return values
    if hasattr(values, "cpu"):  # torch
        return values.cpu().numpy()
    column = values.to_pandas() if hasattr(values, "to_pandas") else values  # cuDF
    return column.to_numpy() if hasattr(column, "to_numpy") else column.get()  # pandas or CuPy


def host_integers(*scalars: Any) -> list[int]:
    """Integers from arrays of one element, fetched together (host sync: once)."""
    xp = array_namespace(*scalars)
    return to_host(xp.stack([xp.astype(scalar, xp.int64) for scalar in scalars])).tolist()


def text_memory(texts: Any) -> tuple[int, int, int]:
    """Where a cuDF column lies, for a kernel; it must outlive the launch, and have a row.

    Returns:
        (address of the UTF-8 bytes, address of the N + 1 offsets into them, 1 if the offsets are int64, 0 if int32).
    """
    memory, _ = texts.to_pylibcudf()
    offsets = memory.child(0)
    wide = offsets.type().id().name == "INT64"
    bytes_ = memory.data()
    start = 0 if bytes_ is None else bytes_.ptr  # no bytes: all texts are empty
    return start, offsets.data().ptr + memory.offset() * (8 if wide else 4), int(wide)


def frames_of(df: Any) -> ModuleType:
    """The library (pandas or cuDF) that a dataframe comes from, so that operators need no device flag."""
    return sys.modules[type(df).__module__.partition(".")[0]]
