"""Whether the compiled loops can be used here."""

from __future__ import annotations

import importlib
import warnings


def compiled_loops() -> bool:
    """Load `model.kernels`; False, with a warning, where numba finds no folder to keep what it compiles."""
    try:
        importlib.import_module("model.kernels")
    except RuntimeError as err:
        warnings.warn(f"slower, without compiled loops: {err}; set NUMBA_CACHE_DIR to a folder", stacklevel=2)
        return False
    return True
