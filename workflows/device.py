"""The device door: which dataframe and array library, which torch device. Nobody else asks for a GPU."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import pyarrow as pa

from workflows.errors import UserError

if TYPE_CHECKING:
    import torch

T = TypeVar("T")

CHOICES = ("auto", "cpu", "cuda")
KERNEL_ROWS = 1 << 15  # to load the compiled loops takes a fifth of a second


@dataclass(frozen=True)
class FrameDevice:
    """Where dataframes live: pandas and NumPy on a CPU, cuDF and CuPy on a GPU."""

    on_cpu: bool

    @property
    def frames(self) -> ModuleType:
        """Imported when it is first used, which on a CPU takes a quarter of a second."""
        return importlib.import_module("pandas" if self.on_cpu else "cudf")

    @property
    def arrays(self) -> ModuleType:
        return importlib.import_module("numpy" if self.on_cpu else "cupy")

    def from_arrow(self, table: pa.Table) -> Any:
        """A dataframe on this device."""
        return table.to_pandas() if self.on_cpu else self.frames.DataFrame.from_arrow(table)

    def from_columns(self, columns: dict[str, Any]) -> Any:
        """A dataframe of NumPy arrays, which it may take over."""
        return self.frames.DataFrame(columns, copy=False) if self.on_cpu else self.frames.DataFrame(columns)

    def to_arrow(self, df: Any) -> pa.Table:
        """The rows of a dataframe of numbers of this device as an Arrow table on the host, without its index."""
        if self.on_cpu:
            return pa.table({name: df[name].to_numpy() for name in df.columns})
        return df.to_arrow(preserve_index=False).replace_schema_metadata()

    def compiles(self, rows: int) -> bool:
        """Whether partitions of so many rows go through `host_kernels`."""
        return self.on_cpu and rows >= KERNEL_ROWS

    def local_cluster(self, workers: int) -> Any:
        """A Dask cluster of worker processes on this machine: a GPU each, or one thread each on the CPU."""
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
        name: "cpu", "cuda", or "auto" (a GPU where cuDF and a GPU are there, else the CPU).

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
    """What keeps dataframes off a GPU; empty where nothing does."""
    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return "no GPU is visible (CUDA_VISIBLE_DEVICES)"
    if importlib.util.find_spec("cudf") is None or importlib.util.find_spec("cupy") is None:
        return "cuDF is not installed"
    cupy = importlib.import_module("cupy")
    try:
        return "" if cupy.cuda.runtime.getDeviceCount() else "no GPU is visible"
    except cupy.cuda.runtime.CUDARuntimeError as err:
        return f"no GPU is usable ({err})"


def host_kernels(array: Any) -> ModuleType | None:
    """`workflows.kernels` for a large array on the host; None where array code is the way, or is quick enough."""
    if not isinstance(array, np.ndarray) or array.shape[0] < KERNEL_ROWS:
        return None
    return _kernels()


def host_view(array: Any) -> np.ndarray | None:
    """The same memory as a NumPy array; None where it is a GPU's."""
    if isinstance(array, np.ndarray):
        return array
    on_host = getattr(getattr(array, "device", None), "type", None) == "cpu"
    return array.numpy() if on_host else None


@functools.cache
def _kernels() -> ModuleType | None:
    return load_loops(lambda: importlib.import_module("workflows.kernels"))


def load_loops(load: Callable[[], ModuleType]) -> ModuleType | None:
    """A module of compiled loops; None, with a warning, where numba finds no folder to keep what it compiles."""
    try:
        return load()
    except RuntimeError as err:
        warnings.warn(f"slower, without compiled loops: {err}; set NUMBA_CACHE_DIR to a folder", stacklevel=2)
        return None


def to_host(values: Any) -> np.ndarray:
    """An array or a column of either library as a NumPy array; the one copy from the device to the host."""
    if isinstance(values, np.ndarray):
        return values
    column = values.to_pandas() if hasattr(values, "to_pandas") else values  # cuDF's
    return column.to_numpy() if hasattr(column, "to_numpy") else column.get()  # pandas', else CuPy's


def usable_cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def torch_device(name: str, gpus: int | None, local_rank: int = 0) -> torch.device:
    """Pick the torch device of a training or scoring process.

    Args:
        name: "auto", "cpu" or "cuda"; "auto" takes a GPU where one is visible.
        gpus: how many devices `--gpus` asked for, None where it did not.
        local_rank: which of the processes of this machine this one is; each takes the GPU of its number.

    Raises:
        UserError: a GPU was asked for and fewer are visible; the message names the CPU way.
    """
    import torch

    visible = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "cpu":
        return torch.device("cpu")
    wanted = max(gpus or 0, 1 if name == "cuda" else 0, local_rank + 1 if visible else 0)
    if wanted > visible:
        asked = f"--gpus {gpus}" if gpus else f"local rank {local_rank}" if local_rank else "--device cuda"
        raise UserError(
            f"{asked} needs {wanted} GPU(s), and {visible} are visible; run on the CPU with --device cpu "
            "(--gpus N then starts N processes)"
        )
    if not visible:
        return torch.device("cpu")
    torch.cuda.set_device(local_rank)
    return torch.device("cuda", local_rank)


def torch_generator(seed: int, device: torch.device) -> torch.Generator:
    """A generator of its own on `device`, so that nothing depends on torch's global one."""
    import torch

    return torch.Generator(device=device).manual_seed(seed)


def torch_precision(name: str, device: torch.device) -> torch.dtype | None:
    """Set how matrix products are computed, and tell the reduced type of mixed precision; None for float32 alone.

    Args:
        name: "fp32", "tf32" (19-bit products of float32), "fp16" or "bf16" (mixed precision), or "amp": float16 on
            a GPU (as the reference), bfloat16 on a CPU.

    Raises:
        UserError: "tf32" without a GPU.
    """
    import torch

    on_gpu = device.type == "cuda"
    if name == "tf32" and not on_gpu:
        raise UserError("--precision tf32 needs an NVIDIA GPU; on a CPU use fp32 or bf16")
    if on_gpu:
        torch.set_float32_matmul_precision("high" if name == "tf32" else "highest")
    if name == "amp":
        name = "fp16" if on_gpu else "bf16"
    return {"fp16": torch.float16, "bf16": torch.bfloat16}.get(name)


def multiplies_bfloat16(device: torch.device) -> bool:
    """Whether matrix products in bfloat16 are quicker than in float32: on a GPU, and on a CPU with matrix tiles (AMX).

    A CPU that has but vector instructions for bfloat16 loses as much by the conversions as it gains.
    """
    import torch

    return device.type == "cuda" or bool(getattr(torch.cpu, "_is_amx_tile_supported", bool)())


def rng_state(device: torch.device) -> torch.Tensor:
    """The state of torch's global generator of a device (dropout draws from it), uint8 on the host."""
    import torch

    return torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()


def set_rng_state(device: torch.device, state: torch.Tensor) -> None:
    """Continue torch's global generator of a device from a state that `rng_state` gave."""
    import torch

    if device.type == "cuda":
        torch.cuda.set_rng_state(state, device)
    else:
        torch.set_rng_state(state)


def collective_backend(device: torch.device) -> str:
    """What carries tensors of a device between processes."""
    return "nccl" if device.type == "cuda" else "gloo"


def synchronize(device: torch.device) -> None:
    """Wait for the device, so that a clock read next is honest (host sync: around timers only)."""
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)


def launches_only(device: torch.device) -> bool:
    """Whether a device works beside the thread that asks it to, so that a second thread would add nothing."""
    return device.type == "cuda"


def graph_capture(device: torch.device) -> Callable[[Callable[[], T]], tuple[Callable[[], None], T]]:
    """What records a CUDA graph: it is given work that only launches kernels on the device, none of which are run.

    The recording gives a function that runs them all, on the same memory, and the result of the work, whose tensors
    hold values after each such run. Random numbers go on from torch's global generator, as without a graph.

    Raises:
        UserError: the device is no GPU.
    """
    import torch

    if device.type != "cuda":
        raise UserError("--cuda-graphs needs an NVIDIA GPU; leave it out on a CPU")

    def capture(work: Callable[[], T]) -> tuple[Callable[[], None], T]:
        graph = torch.cuda.CUDAGraph()
        # Other threads (the Loader's, NCCL's) go on using the GPU meanwhile, and are not recorded.
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            result = work()
        return graph.replay, result

    return capture


def frames_of(df: Any) -> ModuleType:
    """The library (pandas or cuDF) a dataframe belongs to, so that operators need no device flag."""
    return sys.modules[type(df).__module__.partition(".")[0]]
