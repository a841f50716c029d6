"""A stand-in for CuPy and cuDF: GPU code runs without a GPU, and everything that a GPU would refuse or wait for shows.

It uses array-api-strict arrays on a non-default device: they reject anything outside the array standard, other devices,
NumPy arrays and objects. Operations that they allow but that copy to the host on a GPU (`int`, `bool`, iteration,
`__index__`) are rejected except in the places listed here. Its dataframes and columns are in `cudf_stand_in`.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import array_api_strict as strict
import host_kernels
import numpy as np
import pytest

import preprocessing
import workflows
from preprocessing.prepare import text_ids, writer
from preprocessing.sources import gpu_fields
from workflows.operators import encode, leave_one_out
from workflows.sampling import interactions, kernels, negatives

WORKFLOWS, PREPROCESSING = (Path(package.__file__).parent for package in (workflows, preprocessing))
GPU, CPU = strict.Device("device1"), strict.Device("CPU_DEVICE")
Array = type(strict.asarray(0))

# Host syncs in array code besides functions with data-dependent shapes, such as `nonzero`; one per call.
HOST_SYNCS = {
    "candidates.weight": {"int"},  # once: the total weight of all items
    "frames.to_host": {"get"},  # intended copies to the host
}


def gpu(values: Any) -> Any:
    """An array, or an object with all its arrays, moved to the stand-in's device."""
    if isinstance(values, np.ndarray):
        return strict.asarray(values, device=GPU)
    arrays = {name: gpu(array) for name, array in vars(values).items() if isinstance(array, np.ndarray)}
    return replace(values, **arrays)


def cpu(values: Any) -> np.ndarray:
    assert values.device == GPU
    return np.asarray(strict.from_dlpack(values, device=CPU))


def install(monkeypatch: pytest.MonkeyPatch) -> dict[str, set[str]]:
    """Install the stand-in: record which allowed places copied to the host, and how; any other copy fails."""
    from cudf_stand_in import Column, Frame, Index

    library = ModuleType("stand_in")
    library.Index = Index
    for kind in (Column, Index, Frame):
        monkeypatch.setattr(kind, "__module__", "stand_in")
    monkeypatch.setitem(sys.modules, "stand_in", library)
    for module in (negatives, interactions, leave_one_out, encode):
        if hasattr(module, "gpu_kernels"):
            monkeypatch.setattr(module, "gpu_kernels", lambda array: kernels if isinstance(array, Array) else None)
    monkeypatch.setattr(kernels, "launch", host_kernels.launch)
    seen: dict[str, set[str]] = {}

    def guarded(how: str, stock: Callable) -> Callable:
        def method(self: Any, *args: Any) -> Any:
            frame = sys._getframe(1)
            if "array_api_strict" in frame.f_code.co_filename and how != "index":
                return stock(self, *args)  # its own checks
            while frame is not None and not {WORKFLOWS, PREPROCESSING} & {*Path(frame.f_code.co_filename).parents}:
                frame = frame.f_back
            if frame is not None:
                place = f"{Path(frame.f_code.co_filename).stem}.{frame.f_code.co_name}"
                if how not in HOST_SYNCS.get(place, ()):
                    raise TypeError(f"{place}, line {frame.f_lineno}: {how}() of an array copies it to the host")
                seen.setdefault(place, set()).add(how)
            return stock(self, *args)

        return method

    for how in ("int", "bool", "float", "complex", "index", "iter"):
        monkeypatch.setattr(Array, f"__{how}__", guarded(how, getattr(Array, f"__{how}__")))
    monkeypatch.setattr(Array, "get", guarded("get", cpu), raising=False)  # as in CuPy
    return seen


def same(on_gpu: Any, on_cpu: Any) -> None:
    """Assert that one or several arrays are equal in values and dtypes."""
    if isinstance(on_cpu, np.ndarray):
        np.testing.assert_array_equal(cpu(on_gpu), on_cpu)
        assert cpu(on_gpu).dtype == on_cpu.dtype
    else:
        for one, other in zip(on_gpu, on_cpu, strict=True):
            same(one, other)


WAITING = (
    "nonzero",
    "unique_all",
    "unique_counts",
    "unique_inverse",
    "unique_values",
    "repeat",
)  # results of unknown size


@dataclass
class Calls:
    """Array calls made by our code.

    Attributes:
        calls: by function, operator or kernel; each is at least one kernel on a GPU.
        waits: by the place that waited for the GPU: copies to the host, and results whose size depends on the data.
    """

    calls: Counter[str] = field(default_factory=Counter)
    waits: Counter[str] = field(default_factory=Counter)

    @property
    def n_calls(self) -> int:
        return self.calls.total()

    @property
    def n_waits(self) -> int:
        return self.waits.total()


def count_calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    """Count array calls from now on; `install` has to come first."""
    found = Calls()

    def place() -> str:
        frame = sys._getframe(2)
        while frame is not None and not {WORKFLOWS, PREPROCESSING} & set(Path(frame.f_code.co_filename).parents):
            frame = frame.f_back
        return f"{Path(frame.f_code.co_filename).stem}.{frame.f_code.co_name}" if frame is not None else ""

    def counted(name: str, stock: Callable) -> Callable:
        def call(*args: Any, **kwargs: Any) -> Any:
            ours = {WORKFLOWS, PREPROCESSING} & set(Path(sys._getframe(1).f_code.co_filename).parents)
            if ours:
                found.calls[name] += 1
                masked = name in ("__getitem__", "__setitem__") and getattr(args[1], "dtype", None) == strict.bool
                if name in WAITING or masked:
                    found.waits[place()] += 1
            return stock(*args, **kwargs)

        return call

    for name in strict.__all__:
        stock = getattr(strict, name)
        if callable(stock) and not isinstance(stock, type) and not name.startswith("_"):
            monkeypatch.setattr(strict, name, counted(name, stock))
    for name in OPERATORS:
        monkeypatch.setattr(Array, name, counted(name, getattr(Array, name)))
    get, launch = Array.get, kernels.launch

    def fetched(array: Any) -> np.ndarray:
        found.waits[place()] += 1
        return get(array)

    def launched(name: str, *args: Any) -> None:
        found.calls[f"kernel {name}"] += 1
        launch(name, *args)

    monkeypatch.setattr(Array, "get", fetched)
    for module in (kernels, gpu_fields, text_ids, writer):
        monkeypatch.setattr(module, "launch", launched)
    return found


_BINARY = ["add", "sub", "mul", "floordiv", "mod", "and", "or", "xor", "lshift", "rshift"]
OPERATORS = [f"__{name}__" for name in ("eq", "ne", "lt", "le", "gt", "ge", "neg", "invert", "getitem", "setitem")]
OPERATORS += [f"__{prefix}{name}__" for prefix in ("", "r", "i") for name in _BINARY]
