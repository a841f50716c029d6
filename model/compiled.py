"""Whether the compiled loops can be used here."""

from __future__ import annotations

import importlib

from workflows.device import load_loops


def compiled_loops() -> bool:
    """Load `model.kernels`; False, with a warning, where numba finds no folder to keep what it compiles."""
    return load_loops(lambda: importlib.import_module("model.kernels")) is not None
