"""Dataframes and arrays: pandas and NumPy on a CPU, cuDF and CuPy on a GPU."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow as pa
from array_api_compat import array_namespace

from workflows.common.errors import UserError
from workflows.device.loops import COMPILED_ROWS


@dataclass(frozen=True)
class FrameDevice:
    """Where dataframes live: pandas and NumPy on a CPU, cuDF and CuPy on a GPU."""

    on_cpu: bool

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
        """A dataframe from NumPy arrays, possibly without a copy."""
        return self.frames.DataFrame(columns, copy=False) if self.on_cpu else self.frames.DataFrame(columns)

    def to_arrow(self, df: Any) -> pa.Table:
        """A numeric dataframe on this device as an Arrow table on the host, without its index."""
        if self.on_cpu:
            return pa.table({name: df[name].to_numpy() for name in df.columns})
        return df.to_arrow(preserve_index=False).replace_schema_metadata()

    def compiles(self, rows: int) -> bool:
        """Whether partitions of this many rows use `host_loops`."""
        return self.on_cpu and rows >= COMPILED_ROWS

    def local_cluster(self, workers: int) -> Any:
        """A Dask cluster of worker processes on this machine, each with one GPU or one CPU thread."""
        if self.on_cpu:
            from distributed import LocalCluster

            return LocalCluster(  # type: ignore[no-untyped-call]
                n_workers=workers, threads_per_worker=1, memory_limit=0, dashboard_address="127.0.0.1:0"
            )
        cuda = importlib.import_module("dask_cuda")
        return cuda.LocalCUDACluster(n_workers=workers, dashboard_address="127.0.0.1:0")


def frame_device(name: str) -> FrameDevice:
    """Pick the dataframe library.

    Args:
        name: "cpu", "cuda", or "auto" (a GPU if one is visible and cuDF is installed, else the CPU).

    Raises:
        UserError: "cuda" without cuDF or without a GPU.
    """
    missing = _frames_gpu_missing() if name != "cpu" else "not asked for"
    if name == "cuda" and missing:
        raise UserError(
            f"--device cuda: {missing}; set up with `make setup DEVICE=gpu` on a machine with an NVIDIA GPU, "
            "or run on the CPU with --device cpu"
        )
    return FrameDevice(on_cpu=bool(missing))


def _frames_gpu_missing() -> str:
    """Why dataframes cannot live on a GPU; empty if they can."""
    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return "no GPU is visible (CUDA_VISIBLE_DEVICES)"
    if importlib.util.find_spec("cudf") is None or importlib.util.find_spec("cupy") is None:
        return "cuDF is not installed"
    cupy = importlib.import_module("cupy")
    try:
        return "" if cupy.cuda.runtime.getDeviceCount() else "no GPU is visible"
    except cupy.cuda.runtime.CUDARuntimeError as err:
        return f"no GPU is usable ({err})"


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


def usable_cores() -> int:
    """Number of cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def frames_of(df: Any) -> ModuleType:
    """The library (pandas or cuDF) that a dataframe comes from, so that operators need no device flag."""
    return sys.modules[type(df).__module__.partition(".")[0]]
