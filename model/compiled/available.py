"""Availability of the compiled loops."""

from __future__ import annotations

import importlib

from workflows.device.loops import load_loops


def compiled_training() -> bool:
    """Load `model.compiled.train_loops`; False, with a warning, if numba finds no folder for its cache."""
    return load_loops(lambda: importlib.import_module("model.compiled.train_loops")) is not None


def compiled_scoring() -> bool:
    """Load `model.compiled.score_loops`; False, with a warning, if numba finds no folder for its cache."""
    return load_loops(lambda: importlib.import_module("model.compiled.score_loops")) is not None
