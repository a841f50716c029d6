"""Device selection without a GPU, and with simulated ones."""

from __future__ import annotations

import pickle
import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch

from workflows.common.errors import UserError
from workflows.device.frames import FrameDevice, frame_device, frames_of
from workflows.device.loops import COMPILED_ROWS


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def pretend_gpus(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.setattr(torch.cuda, "set_device", lambda _: None)


@pytest.fixture
def pretend_rapids(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Importable stand-ins for cuDF and CuPy that see `runtime.count` GPUs."""

    class CUDARuntimeError(RuntimeError):
        pass

    def device_count() -> int:
        if isinstance(runtime.count, str):
            raise CUDARuntimeError(runtime.count)
        return runtime.count

    runtime = SimpleNamespace(count=1, getDeviceCount=device_count, CUDARuntimeError=CUDARuntimeError)
    for name in ("cudf", "cupy"):
        module = ModuleType(name)
        module.__spec__ = SimpleNamespace(name=name)
        monkeypatch.setitem(sys.modules, name, module)
    sys.modules["cupy"].cuda = SimpleNamespace(runtime=runtime)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return runtime


@pytest.mark.parametrize("name", ["cpu", "auto"])
def test_without_a_gpu_dataframes_are_pandas(no_gpu: None, name: str) -> None:
    device = frame_device(name)
    assert device == FrameDevice(on_cpu=True)
    assert (device.frames, device.arrays) == (pd, np)
    assert device.on_cpu


@pytest.mark.parametrize("hidden", ["", "-1"])
def test_cuda_dataframes_without_a_gpu_suggest_the_cpu(monkeypatch: pytest.MonkeyPatch, hidden: str) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
    with pytest.raises(UserError, match=r"--device cuda: no GPU is visible.*--device cpu"):
        frame_device("cuda")


def test_cuda_dataframes_without_cudf_say_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"cuDF is not installed.*make setup DEVICE=gpu.*--device cpu"):
        frame_device("cuda")
    assert frame_device("auto").on_cpu


@pytest.mark.parametrize("count", [0, "driver too old"])
def test_cuda_dataframes_need_a_usable_gpu(pretend_rapids: SimpleNamespace, count: int | str) -> None:
    pretend_rapids.count = count
    with pytest.raises(UserError, match=f"{'no GPU is visible' if count == 0 else 'driver too old'}.*--device cpu"):
        frame_device("cuda")
    assert frame_device("auto").on_cpu


@pytest.mark.parametrize("name", ["auto", "cuda"])
def test_with_a_gpu_dataframes_are_cudf(pretend_rapids: SimpleNamespace, name: str) -> None:
    device = frame_device(name)
    assert (device.frames.__name__, device.arrays.__name__) == ("cudf", "cupy")
    assert not device.on_cpu
    assert pickle.loads(pickle.dumps(device)) == device
    assert frame_device("cpu").on_cpu


def test_frame_device_pickles() -> None:
    device = frame_device("cpu")
    assert pickle.loads(pickle.dumps(device)) == device


def test_arrow_round_trip() -> None:
    device = frame_device("cpu")
    table = pa.table({"user": pa.array([3, 1], pa.int32()), "name": ["b", "a"], "time": pa.array([1.5, 2.5])})
    df = device.from_arrow(table)
    assert isinstance(df, pd.DataFrame)
    assert device.to_arrow(df).equals(table)


def test_to_arrow_drops_the_index() -> None:
    df = pd.DataFrame({"x": [1, 2]}, index=pd.Index([7, 5], name="old place"))
    table = frame_device("cpu").to_arrow(df)
    assert table.column_names == ["x"]
    assert table.schema.metadata is None


def test_large_host_partitions_use_compiled_loops() -> None:
    assert [FrameDevice(on_cpu=True).compiles(rows) for rows in (0, COMPILED_ROWS - 1, COMPILED_ROWS)] == [
        False,
        False,
        True,
    ]
    assert not FrameDevice(on_cpu=False).compiles(10 * COMPILED_ROWS)


def test_frames_of_returns_the_library_of_a_dataframe() -> None:
    assert frames_of(pd.DataFrame({"x": [1]})) is pd
