"""The CUDA kernels compiled for the CPU, where undefined behaviour ends the process."""

from __future__ import annotations

import ctypes
import functools
from typing import Any

import pytest

from benchmark.cost_model.host_kernels import argument, compile_for_host
from workflows.common.errors import UserError

_CHECKS = ("-Wall", "-Wextra", "-Werror", "-Wno-unused-function", "-fsanitize=undefined", "-fno-sanitize-recover=all")


@functools.cache
def _library() -> ctypes.CDLL:
    try:
        return compile_for_host(_CHECKS)
    except UserError as err:
        pytest.skip(str(err))


def launch(name: str, elements: int, *arguments: Any) -> None:
    """`workflows.device.kernels.launch` on host memory: NumPy arrays, torch tensors or the stand-in's arrays."""
    if elements:
        getattr(_library(), name)(*(argument(getattr(given, "_array", given)) for given in arguments))
