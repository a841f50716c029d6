"""Compiled loops beside the array code: where an array's memory is decides which can take it."""

from __future__ import annotations

import functools
import importlib
import warnings
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np

COMPILED_ROWS = 1 << 15  # loading the compiled loops takes 0.2 s


def host_loops(array: Any, rows: int | None = None) -> ModuleType | None:
    """`workflows.sampling.compiled` for a large host array; None if array code has to be used or is fast enough.

    Args:
        rows: of all calls together, if they are more than the array's.
    """
    if not isinstance(array, np.ndarray) or (array.shape[0] if rows is None else rows) < COMPILED_ROWS:
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
