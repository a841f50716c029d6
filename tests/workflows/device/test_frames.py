"""Device selection without a GPU, and with simulated ones."""

from __future__ import annotations

import importlib
import importlib.util
import pickle
import re
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from workflows.common.errors import UserError
from workflows.device import frames
from workflows.device.frames import FrameDevice, cpu_only, frame_device, frames_of
from workflows.device.loops import COMPILED_ROWS


@pytest.fixture(autouse=True)
def fresh_process(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What is done or said once per process is done anew in each test, and forgotten after it."""
    monkeypatch.setattr(frames, "_opened", set())
    caches = (frames._gpu_fails, frames._say)
    for cache in caches:
        cache.cache_clear()
    yield
    for cache in caches:
        cache.cache_clear()


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")


class CUDARuntimeError(RuntimeError):
    pass


class Rapids:
    """Importable stand-ins for cuDF, CuPy, RMM and CUDA's bindings, which see `count` GPUs and break where told.

    Attributes:
        current: each thread's GPU.
        pools: by GPU, the memory pool (its handle and what it keeps) that RMM allocates from.
        imported: the libraries, in the order in which the door imports them.
    """

    count: int | str = 1
    kernel: Exception | int = 6
    broken_import: Exception | None = None
    reserved, used, free = 700, 500, 1000

    def __init__(self) -> None:
        self.current = threading.local()
        self.keeps: dict[int, int] = {}
        self.pools: dict[int, tuple[int, int]] = {}
        self.imported: list[str] = []

    def device_count(self) -> int:
        if isinstance(self.count, str):
            raise CUDARuntimeError(self.count)
        return self.count

    def sum(self, _: object) -> int:
        if isinstance(self.kernel, Exception):
            raise self.kernel
        return self.kernel

    def device(self, index: int) -> Any:
        def use() -> None:
            self.current.index = index

        @contextmanager
        def entered() -> Iterator[None]:
            before = getattr(self.current, "index", 0)
            use()
            yield
            self.current.index = before

        found = entered()
        found.use = use  # type: ignore[attr-defined]
        return found

    def set_resource(self, index: int, pool: int) -> None:
        self.pools[index] = pool, self.keeps[pool]

    def modules(self) -> dict[str, ModuleType]:
        runtime = SimpleNamespace(
            getDeviceCount=self.device_count,
            memGetInfo=lambda: (self.free, 10_000 + getattr(self.current, "index", 0)),
            deviceGetDefaultMemPool=lambda index: 100 + index,
            memPoolSetAttribute=lambda pool, name, value: self.keeps.update({pool: value}) if name == "keep" else None,
            memPoolGetAttribute=lambda _, name: getattr(self, name),
            cudaMemPoolAttrReleaseThreshold="keep",
            cudaMemPoolAttrReservedMemCurrent="reserved",
            cudaMemPoolAttrUsedMemCurrent="used",
        )
        contents: dict[str, dict[str, Any]] = {
            "cudf": {"Series": lambda _: SimpleNamespace(max=lambda: 3)},
            "cupy": {"cuda": SimpleNamespace(runtime=runtime, Device=self.device), "arange": range, "sum": self.sum},
            "rmm": {
                "mr": SimpleNamespace(
                    set_per_device_resource=self.set_resource, CudaAsyncViewMemoryResource=lambda pool: pool
                )
            },
            "cuda.bindings.runtime": {"cudaMemPool_t": lambda handle: handle},
        }
        found = {}
        for name, names in contents.items():
            found[name] = ModuleType(name)
            vars(found[name]).update(names)
            found[name].__spec__ = SimpleNamespace(name=name)  # type: ignore[assignment]
        return found


@pytest.fixture
def rapids(monkeypatch: pytest.MonkeyPatch) -> Rapids:
    made = Rapids()
    modules = made.modules()

    def import_module(name: str) -> ModuleType:
        made.imported.append(name)
        if name == "cudf" and made.broken_import is not None:
            raise made.broken_import
        return modules.get(name) or importlib.import_module(name)

    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(frames, "importlib", SimpleNamespace(import_module=import_module, util=importlib.util))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return made


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


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        ({"count": 0}, "no GPU is visible"),
        ({"count": "driver too old"}, "CUDARuntimeError: driver too old"),
        ({"broken_import": RuntimeError("Cannot patch Numba\nmore")}, r"RuntimeError: Cannot patch Numba\)"),
        ({"broken_import": OSError("libnvrtc.so.13: cannot open")}, "OSError: libnvrtc"),
        ({"kernel": RuntimeError("NVRTC_ERROR_INVALID_OPTION")}, "NVRTC_ERROR_INVALID_OPTION"),
        ({"kernel": MemoryError("out of memory")}, "MemoryError: out of memory"),
        ({"kernel": 5}, r"GPU 0 computes wrong sums and maxima: \(5, 3\)"),
    ],
)
def test_a_gpu_that_does_not_compute_is_an_error_or_left_alone_with_one_line(
    rapids: Rapids, capsys: pytest.CaptureFixture[str], broken: dict[str, Any], reason: str
) -> None:
    for name, value in broken.items():
        setattr(rapids, name, value)
    with pytest.raises(UserError, match=rf"--device cuda: .*{reason}.*--device cpu"):
        frame_device("cuda")
    assert frame_device("auto") == frame_device("auto") == FrameDevice(on_cpu=True)
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 1
    assert re.search(rf"dataframes use the CPU: .*{reason}", said[0])
    assert cpu_only()


def test_a_machine_without_a_gpu_needs_no_message(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr(frames, "_has_driver", lambda: False)
    assert frame_device("auto").on_cpu
    assert capsys.readouterr().out == ""
    monkeypatch.setattr(frames, "_has_driver", lambda: True)
    assert frame_device("auto").on_cpu
    assert capsys.readouterr().out == "dataframes use the CPU: cuDF is not installed\n"


@pytest.mark.parametrize("name", ["auto", "cuda"])
def test_with_a_gpu_dataframes_are_cudf(rapids: Rapids, name: str) -> None:
    device = frame_device(name)
    assert (device.frames.__name__, device.arrays.__name__) == ("cudf", "cupy")
    assert not device.on_cpu
    assert not cpu_only()
    assert pickle.loads(pickle.dumps(device)) == device


def test_the_cpu_needs_no_gpu_library(rapids: Rapids) -> None:
    device = frame_device("cpu", 3)
    assert device == FrameDevice(on_cpu=True)
    device.use()
    assert rapids.imported == []
    assert cpu_only()


def test_a_process_decides_for_the_cpu_only_if_it_chooses_no_gpu(rapids: Rapids) -> None:
    assert not cpu_only()
    frame_device("cpu")
    assert cpu_only()
    frame_device("cuda")
    assert not cpu_only()


def test_the_memory_pool_is_set_once_per_gpu_and_keeps_its_memory(rapids: Rapids) -> None:
    rapids.count = 2
    for index in (1, 1, 0, 1):
        assert frame_device("cuda", index).index == index
    assert rapids.pools == {1: (101, 2**64 - 1), 0: (100, 2**64 - 1)}
    assert rapids.imported.count("rmm") == 2
    # CuPy would keep the memory that it allocates before cuDF makes it allocate from RMM.
    assert rapids.imported.index("cupy") < rapids.imported.index("cudf") < rapids.imported.index("rmm")


def test_free_memory_includes_what_the_pool_holds_unused(rapids: Rapids) -> None:
    assert frame_device("cuda").free_bytes() == 1000 + 700 - 500


def test_a_gpu_that_is_not_visible_is_refused(rapids: Rapids) -> None:
    with pytest.raises(UserError, match=r"no GPU 1 is visible \(there are 1\)"):
        frame_device("cuda", 1)


def test_each_thread_uses_the_gpu_after_it_is_told_to(rapids: Rapids) -> None:
    rapids.count = 4
    device = frame_device("cuda", 3)
    assert rapids.current.index == 3
    with ThreadPoolExecutor(1) as stranger, ThreadPoolExecutor(1, initializer=device.use) as told:
        assert stranger.submit(getattr, rapids.current, "index", 0).result() == 0
        assert told.submit(getattr, rapids.current, "index", 0).result() == 3


def test_a_process_that_is_sent_a_gpu_opens_it(rapids: Rapids) -> None:
    device: FrameDevice = pickle.loads(pickle.dumps(FrameDevice(on_cpu=False)))
    assert rapids.pools == {}
    assert device.open() is device
    assert list(rapids.pools) == [0]
    rapids.count = 0
    frames._gpu_fails.cache_clear()
    with pytest.raises(UserError, match="no GPU is visible"):
        device.open()


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
