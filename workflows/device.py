"""The device door: selects the dataframe and array library and the torch device. Only this module looks for a GPU."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import pyarrow as pa

from workflows.common.errors import UserError

if TYPE_CHECKING:
    import torch

T = TypeVar("T")

CHOICES = ("auto", "cpu", "cuda")
COMPILED_ROWS = 1 << 15  # loading the compiled loops takes 0.2 s


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


def host_loops(array: Any) -> ModuleType | None:
    """`workflows.sampling.compiled` for a large host array; None if array code has to be used or is fast enough."""
    if not isinstance(array, np.ndarray) or array.shape[0] < COMPILED_ROWS:
        return None
    return _compiled_loops()


def host_view(array: Any) -> np.ndarray | None:
    """A NumPy view of the same memory; None if it is GPU memory."""
    if isinstance(array, np.ndarray):
        return array
    on_host = getattr(getattr(array, "device", None), "type", None) == "cpu"
    return array.numpy() if on_host else None


@functools.cache
def _compiled_loops() -> ModuleType | None:
    return load_loops(lambda: importlib.import_module("workflows.sampling.compiled"))


def load_loops(load: Callable[[], ModuleType]) -> ModuleType | None:
    """A module of compiled loops; None, with a warning, if numba finds no writable cache folder."""
    try:
        return load()
    except RuntimeError as err:
        warnings.warn(f"no compiled loops, so slower: {err}; set NUMBA_CACHE_DIR to a writable folder", stacklevel=2)
        return None


def to_host(values: Any) -> np.ndarray:
    """An array or column of either library as a NumPy array; the only device-to-host copy."""
    if isinstance(values, np.ndarray):
        return values
    column = values.to_pandas() if hasattr(values, "to_pandas") else values  # cuDF
    return column.to_numpy() if hasattr(column, "to_numpy") else column.get()  # pandas or CuPy


def usable_cores() -> int:
    """Number of cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def torch_device(name: str, gpus: int | None, local_rank: int = 0) -> torch.device:
    """Pick the torch device of a training or scoring process.

    Args:
        name: "auto", "cpu" or "cuda"; "auto" takes a GPU if one is visible.
        gpus: number of devices requested by `--gpus`, None if it was not given.
        local_rank: rank of this process on this machine; also the index of its GPU.

    Raises:
        UserError: more GPUs are requested than are visible; the message says how to run on the CPU.
    """
    import torch

    visible = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "cpu":
        return torch.device("cpu")
    wanted = max(gpus or 0, 1 if name == "cuda" else 0, local_rank + 1 if visible else 0)
    if wanted > visible:
        asked = f"--gpus {gpus}" if gpus else f"local rank {local_rank}" if local_rank else "--device cuda"
        raise UserError(
            f"{asked} needs {wanted} GPU(s), but {visible} are visible; run on the CPU with --device cpu "
            "(--gpus N then starts N processes)"
        )
    if not visible:
        return torch.device("cpu")
    torch.cuda.set_device(local_rank)
    return torch.device("cuda", local_rank)


def torch_generator(seed: int, device: torch.device) -> torch.Generator:
    """A separate generator on `device`, independent of torch's global one."""
    import torch

    return torch.Generator(device=device).manual_seed(seed)


def resolve_precision(amp: bool, precision: str | None, device: torch.device) -> str:
    """The precision that `--amp` and `--precision` mean on a device: "fp32", "tf32", "fp16" or "bf16".

    "tf32" is float32 with matrix products of 19-bit operands.

    `--amp` is float16 on a GPU, as in the reference. On a CPU it is bfloat16 if that is faster, otherwise float32.

    Raises:
        UserError: "tf32" without a GPU.
    """
    if precision == "tf32" and device.type != "cuda":
        raise UserError("--precision tf32 needs an NVIDIA GPU; on a CPU use fp32 or bf16")
    if precision is not None or not amp:
        return precision or "fp32"
    if device.type == "cuda":
        return "fp16"
    return "bf16" if multiplies_bfloat16(device) else "fp32"


def mixed_dtype(precision: str) -> torch.dtype | None:
    """The dtype of mixed precision; None for float32 throughout, with or without TF32 products."""
    import torch

    return {"fp16": torch.float16, "bf16": torch.bfloat16}.get(precision)


@contextmanager
def matrix_precision(precision: str, device: torch.device) -> Iterator[None]:
    """Within, float32 matrix products use TF32 if `precision` is "tf32"; elsewhere they are full float32."""
    import torch

    if device.type != "cuda":
        yield
        return
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision("highest")


def multiplies_bfloat16(device: torch.device) -> bool:
    """Whether bfloat16 matrix products beat float32: on a GPU, and on a CPU with matrix tiles (AMX).

    On a CPU with only vector instructions for bfloat16, the conversions cost as much as the products gain.
    """
    import torch

    return device.type == "cuda" or bool(getattr(torch.cpu, "_is_amx_tile_supported", bool)())


def rng_state(device: torch.device) -> torch.Tensor:
    """State of torch's global generator for a device (the one dropout uses), uint8 on the host."""
    import torch

    return torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()


def set_rng_state(device: torch.device, state: torch.Tensor) -> None:
    """Restore torch's global generator for a device from a state returned by `rng_state`."""
    import torch

    if device.type == "cuda":
        torch.cuda.set_rng_state(state, device)
    else:
        torch.set_rng_state(state)


def collective_backend(device: torch.device) -> str:
    """The process-group backend for tensors on a device."""
    return "nccl" if device.type == "cuda" else "gloo"


def synchronize(device: torch.device) -> None:
    """Wait for the device, so that timings include its work (host sync: around timers only)."""
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)


def graph_capture(device: torch.device) -> Callable[[Callable[[], T]], tuple[Callable[[], None], T]]:
    """A function that captures a CUDA graph of work that only launches kernels, without running them.

    It returns a function that replays the graph on the same memory, and the result of the work, whose tensors hold
    valid values after each replay. Replays advance torch's global generator as eager execution does.

    Raises:
        UserError: the device is not a GPU.
    """
    import torch

    if device.type != "cuda":
        raise UserError("--cuda-graphs needs an NVIDIA GPU; leave it out on a CPU")

    def capture(work: Callable[[], T]) -> tuple[Callable[[], None], T]:
        graph = torch.cuda.CUDAGraph()
        # Other threads (the Loader's, NCCL's) keep using the GPU meanwhile and are not captured.
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            result = work()
        return graph.replay, result

    return capture


def frames_of(df: Any) -> ModuleType:
    """The library (pandas or cuDF) that a dataframe comes from, so that operators need no device flag."""
    return sys.modules[type(df).__module__.partition(".")[0]]
