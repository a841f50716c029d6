"""Availability of the compiled loops."""

from __future__ import annotations

import importlib

from workflows.device import load_loops


def compiled_loops() -> bool:
    """Load `model.compiled.loops`; False, with a warning, if numba finds no folder for its cache."""
    return load_loops(lambda: importlib.import_module("model.compiled.loops")) is not None
