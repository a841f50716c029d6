"""Launching of kernels, on a simulated CuPy; their results are tested beside the array code."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from workflows.device import kernels


@pytest.fixture
def cupy(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A CuPy that records launches, and the device and stream at that time."""
    told = SimpleNamespace(launches=[], device=None, stream=None, compiled=0)

    @contextmanager
    def device(index: int):
        told.device = index
        yield
        told.device = None

    @contextmanager
    def stream(given: Any):
        told.stream = given.__cuda_stream__()
        yield
        told.stream = None

    def module(code: str, options: tuple[str, ...]) -> SimpleNamespace:
        told.compiled += 1

        def get(name: str) -> Any:
            assert f"void {name}(" in code
            return lambda grid, block, given: told.launches.append((name, grid, block, given, told.device, told.stream))

        return SimpleNamespace(get_function=get)

    cuda = SimpleNamespace(Device=device, Stream=SimpleNamespace(from_external=stream))
    monkeypatch.setitem(sys.modules, "cupy", SimpleNamespace(cuda=cuda, RawModule=module))
    kernels._module.cache_clear()
    yield told
    kernels._module.cache_clear()


def array(pointer: int, contiguous: bool = True) -> SimpleNamespace:
    return SimpleNamespace(data=SimpleNamespace(ptr=pointer), flags=SimpleNamespace(c_contiguous=contiguous))


def test_arguments_are_64_bits_each(cupy: SimpleNamespace) -> None:
    kernels.launch("series_negatives", 300, array(2**63 + 5), 7, -3, None)
    kernels.launch("series_negatives", 1, array(1))
    (name, grid, block, given, device, stream), second = cupy.launches
    assert (name, grid, block, device, stream) == ("series_negatives", (3,), (128,), None, None)
    assert [value.nbytes for value in given] == [8] * 4
    assert [int(value) for value in given] == [2**63 + 5, 7, -3, 0]
    assert second[1] == (1,)
    assert cupy.compiled == 1


def test_a_large_loop_is_strided_over_a_bounded_grid(cupy: SimpleNamespace) -> None:
    kernels.launch("train_rows", 1 << 40)
    assert cupy.launches[0][1] == (1 << 20,)


def test_nothing_is_launched_for_no_elements(cupy: SimpleNamespace) -> None:
    kernels.launch("train_rows", 0, array(1))
    assert not cupy.launches + [cupy.compiled] * cupy.compiled


def test_a_tensor_is_used_on_its_own_device_and_stream(cupy: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: SimpleNamespace(__cuda_stream__=lambda: (0, 73)))
    device = SimpleNamespace(index=3)
    tensor = SimpleNamespace(is_cuda=True, device=device, data_ptr=lambda: 11, is_contiguous=lambda: True)
    kernels.launch("row_positions", 5, 1, tensor)
    ((_, _, _, given, current, stream),) = cupy.launches
    assert (int(given[1]), current, stream) == (11, 3, (0, 73))


def test_strided_arrays_are_refused(cupy: SimpleNamespace) -> None:
    with pytest.raises(ValueError, match="strided"):
        kernels.launch("train_rows", 5, array(1, contiguous=False))
    strided = SimpleNamespace(is_cuda=False, data_ptr=lambda: 11, is_contiguous=lambda: False)
    with pytest.raises(ValueError, match="strided"):
        kernels.launch("train_rows", 5, strided)


@pytest.mark.parametrize("fault", [None, RuntimeError("no NVRTC"), ImportError("libcudart")])
def test_tensors_go_to_the_kernels_if_cupy_compiles_them(
    cupy: SimpleNamespace, fault: Exception | None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def find(_: str) -> object:
        return object()

    def failing(code: str, options: tuple[str, ...]) -> None:
        raise fault

    monkeypatch.setattr("importlib.util.find_spec", find)
    if fault is not None:
        monkeypatch.setattr(sys.modules["cupy"], "RawModule", failing)
    kernels._cupy_works.cache_clear()
    tensor = SimpleNamespace(is_cuda=True)
    for _ in range(2):
        assert (kernels.gpu_kernels(tensor) is None) == (fault is not None)
    said = " ".join(capsys.readouterr().out.split())
    assert said.count("CuPy fails") == (fault is not None)
    assert str(fault) in said or fault is None
    kernels._cupy_works.cache_clear()
