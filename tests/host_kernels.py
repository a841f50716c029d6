"""The CUDA kernels compiled for the CPU, where undefined behaviour ends the process."""

from __future__ import annotations

import ctypes
import functools
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from workflows.device.kernels import SOURCE

_SHIM = Path(__file__).with_name("host_shim.h")


@functools.cache
def _library() -> ctypes.CDLL:
    compiler = shutil.which(os.environ.get("CXX", "g++")) or shutil.which("clang++")
    if compiler is None:
        pytest.skip("no C++ compiler")
    folder = tempfile.mkdtemp(prefix="kernels-")
    path = Path(folder) / "kernels.so"
    flags = ["-std=c++17", "-O2", "-Wall", "-Wextra", "-Werror", "-Wno-unused-function", "-shared", "-fPIC"]
    flags += ["-fsanitize=undefined", "-fno-sanitize-recover=all"]
    subprocess.run([compiler, *flags, "-include", _SHIM, "-x", "c++", SOURCE, "-o", path], check=True)
    try:
        return ctypes.CDLL(str(path))
    finally:
        shutil.rmtree(folder)


def launch(name: str, elements: int, *arguments: Any) -> None:
    """`workflows.device.kernels.launch` on host memory: NumPy arrays, torch tensors or the stand-in's arrays."""
    if elements:
        getattr(_library(), name)(*map(_argument, arguments))


def _argument(argument: Any) -> Any:
    if argument is None:
        return ctypes.c_void_p(0)
    if isinstance(argument, int):
        return ctypes.c_uint64(argument % (1 << 64))
    if hasattr(argument, "data_ptr"):
        assert argument.is_contiguous()
        return ctypes.c_void_p(argument.data_ptr())
    array = argument if isinstance(argument, np.ndarray) else argument._array
    assert array.flags.c_contiguous
    return ctypes.c_void_p(array.ctypes.data)
