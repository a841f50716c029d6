"""Launches the CUDA kernels of `kernels.cu`, which NVRTC compiles at first use (CuPy keeps them in ~/.cupy/)."""

from __future__ import annotations

import functools
import importlib
import importlib.util
from contextlib import ExitStack
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from workflows.common.progress import console

SOURCE = Path(__file__).with_name("kernels.cu")
OPTIONS = ("--std=c++17",)
_BLOCK_THREADS, _MAX_BLOCKS = 128, 1 << 20


def gpu_kernels(array: Any) -> ModuleType | None:
    """`workflows.sampling.kernels` for an array of CuPy's, or for a tensor of torch's on a GPU if CuPy is installed."""
    on_gpu = type(array).__module__.partition(".")[0] == "cupy" or (getattr(array, "is_cuda", False) and _cupy_works())
    return importlib.import_module("workflows.sampling.kernels") if on_gpu else None


@functools.cache
def _cupy_works() -> bool:
    """Whether CuPy is installed and compiles the kernels; if only the former, one line says so."""
    if importlib.util.find_spec("cupy") is None:
        return False
    try:
        _module().get_function("value_ranges")
    except Exception as err:  # whatever a driver, a version check at import or a compiler raises
        console.print(f"torch operators draw the negatives, more slowly: CuPy fails ({type(err).__name__}: {err})")
        return False
    return True


def launch(name: str, elements: int, *arguments: Any) -> None:
    """Run a kernel on the device and the current stream of its arrays; asynchronous.

    Args:
        elements: the kernel's loop runs over 0 .. elements - 1; nothing is launched for none.
        arguments: contiguous arrays of CuPy's or torch's, integers (as 64 bits), or None for a null pointer.
    """
    if not elements:
        return
    cupy = importlib.import_module("cupy")
    given = [_argument(argument) for argument in arguments]
    with ExitStack() as entered:
        tensor = next((argument for argument in arguments if getattr(argument, "is_cuda", False)), None)
        if tensor is not None:  # CuPy has a current device and stream of its own
            import torch

            entered.enter_context(cupy.cuda.Device(tensor.device.index))
            stream = torch.cuda.current_stream(tensor.device)
            entered.enter_context(cupy.cuda.Stream.from_external(stream))
        blocks = min(_MAX_BLOCKS, -(-elements // _BLOCK_THREADS))
        _module().get_function(name)((blocks,), (_BLOCK_THREADS,), tuple(given))


@functools.cache
def _module() -> Any:
    return importlib.import_module("cupy").RawModule(code=SOURCE.read_text(encoding="utf-8"), options=OPTIONS)


def _argument(argument: Any) -> Any:
    """The argument as the kernel takes it: a pointer, or a 64-bit integer."""
    if argument is None:
        return np.uint64(0)
    if isinstance(argument, int):
        return np.int64(argument)
    on_torch = hasattr(argument, "data_ptr")
    if not (argument.is_contiguous() if on_torch else argument.flags.c_contiguous):
        raise ValueError("a kernel reads arrays as one block of memory, and this one is strided")
    return np.uint64(argument.data_ptr() if on_torch else argument.data.ptr)
