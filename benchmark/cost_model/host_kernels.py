"""The CUDA kernels compiled for the CPU: the same source and the same results, in one thread."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmark.common.measure import failed
from workflows.common.errors import UserError
from workflows.device.kernels import SOURCE

_SHIM = Path(__file__).with_name("host_shim.h")
_FLAGS = ("-std=c++17", "-O2", "-shared", "-fPIC")


def compile_for_host(more: Sequence[str] = ()) -> ctypes.CDLL:
    """Compile the kernels and load them.

    Args:
        more: flags for the compiler.

    Raises:
        UserError: there is no C++ compiler, or it fails.
    """
    compiler = shutil.which(os.environ.get("CXX", "g++")) or shutil.which("clang++")
    if compiler is None:
        raise UserError("the CUDA kernels run on the CPU only where there is a C++ compiler: install g++ or clang++")
    folder = tempfile.mkdtemp(prefix="kernels-")
    try:
        path = Path(folder) / "kernels.so"
        command: list[str | Path] = [compiler, *_FLAGS, *more, "-include", _SHIM, "-x", "c++", SOURCE, "-o", path]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise failed(command, done.returncode, done.stderr)
        return ctypes.CDLL(str(path))
    finally:
        shutil.rmtree(folder)


def argument(given: Any) -> Any:
    """A kernel's argument: a contiguous NumPy array or torch tensor, an integer, or None for a null pointer."""
    if given is None:
        return ctypes.c_void_p(0)
    if isinstance(given, int):
        return ctypes.c_uint64(given % (1 << 64))
    if isinstance(given, np.ndarray):
        assert given.flags.c_contiguous
        return ctypes.c_void_p(given.ctypes.data)
    assert given.is_contiguous()
    return ctypes.c_void_p(given.data_ptr())
