"""The stubs that the Merlin door adds to cuDF, tested on stand-ins; tests/contract covers the real cuDF."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable, Iterable
from types import ModuleType

import pytest

from workflows.merlin_gaps import TAKEN_FROM_CUDF, complete_cudf

CATEGORICAL = "cudf.core.column.build_categorical_column"
COLUMN = "cudf.core.column.build_column"
FROM_DASK = "dask_cudf.from_dask_dataframe"
Fake = Callable[..., dict[str, ModuleType]]


@pytest.fixture
def fake_cudf(monkeypatch: pytest.MonkeyPatch) -> Fake:
    """A stand-in for a version of cuDF with all the names that Merlin uses, except those in `missing`."""

    def make(version: str, missing: Iterable[str] = ()) -> dict[str, ModuleType]:
        paths = [module.split(".") for module in TAKEN_FROM_CUDF]
        names = {".".join(path[: length + 1]) for path in paths for length in range(len(path))}
        modules = {name: ModuleType(name) for name in sorted(names)}
        for name, module in modules.items():
            monkeypatch.setitem(sys.modules, name, module)
            parent, _, own = name.rpartition(".")
            if parent:
                setattr(modules[parent], own, module)
            for taken in TAKEN_FROM_CUDF.get(name, "").split():
                if f"{name}.{taken}" not in missing:
                    setattr(module, taken, f"cuDF's own {taken}")
        modules["cudf"].__version__ = version
        return modules

    return make


def contents(modules: dict[str, ModuleType]) -> dict[str, object]:
    return {f"{name}.{key}": value for name, module in modules.items() for key, value in vars(module).items()}


@pytest.mark.parametrize("missing", [[CATEGORICAL, COLUMN, FROM_DASK], [CATEGORICAL], [COLUMN], [FROM_DASK]])
def test_missing_names_become_stubs_that_raise_and_nothing_else_changes(fake_cudf: Fake, missing: list[str]) -> None:
    modules = fake_cudf("26.10.02", missing)
    before = contents(modules)
    assert complete_cudf()
    after = contents(modules)
    assert set(after) - set(before) == set(missing)
    for name in missing:
        with pytest.raises(NotImplementedError, match=rf"^{re.escape(name)} no longer exists"):
            after[name]([1], dtype="int64")
    assert {name: after[name] for name in before} == before


@pytest.mark.parametrize("version", ["23.08.00", "26.10.00", "26.12.00"])
def test_a_complete_cudf_is_left_unchanged(fake_cudf: Fake, version: str) -> None:
    modules = fake_cudf(version)
    before = contents(modules)
    assert complete_cudf()
    assert contents(modules) == before


@pytest.mark.parametrize("version", ["26.08.00", "26.100.0", "26.12.00"])
def test_another_version_with_missing_names_is_rejected(fake_cudf: Fake, version: str) -> None:
    modules = fake_cudf(version, [CATEGORICAL, FROM_DASK])
    before = contents(modules)
    with pytest.raises(RuntimeError) as caught:
        complete_cudf()
    for told in (f"cuDF {version}", CATEGORICAL, FROM_DASK, "cuDF 26.10:", "make setup DEVICE=gpu", "--device cpu"):
        assert told in str(caught.value)
    assert contents(modules) == before


@pytest.mark.parametrize("more", ["cudf.Series", "cudf.RangeIndex", "dask_cudf.io.parquet.CudfEngine"])
def test_unexpected_missing_names_are_rejected_and_listed(fake_cudf: Fake, more: str) -> None:
    modules = fake_cudf("26.10.00", [CATEGORICAL, COLUMN, FROM_DASK, more])
    before = contents(modules)
    with pytest.raises(RuntimeError, match=rf"cuDF 26\.10\.00 lacks {more}, which") as caught:
        complete_cudf()
    assert CATEGORICAL not in str(caught.value)
    assert contents(modules) == before


def test_a_missing_library_is_rejected(fake_cudf: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_cudf("26.10.00")
    for name in [name for name in TAKEN_FROM_CUDF if name.startswith("dask_cudf")]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(RuntimeError, match=r"lacks dask_cudf\.DataFrame.*dask_cudf\.io\.parquet\.CudfEngine"):
        complete_cudf()


def test_without_cudf_merlin_uses_pandas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cudf", None)  # not installed
    assert not complete_cudf()


@pytest.mark.parametrize("gpus", [1, 0])
def test_cudf_is_checked_before_merlin_is_imported(monkeypatch: pytest.MonkeyPatch, gpus: int) -> None:
    # With a visible GPU and an empty cuDF, the check fails before Merlin can fail on a name. Without a GPU Merlin uses
    # pandas.
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    code = (
        "import sys, types\n"
        "from dask.distributed.diagnostics import nvml\n"
        f"nvml.device_get_count = lambda: {gpus}\n"
        "for name in ('cudf', 'dask_cudf'):\n"
        "    sys.modules[name] = types.ModuleType(name)\n"
        "sys.modules['cudf'].__version__ = '26.10.00'\n"
        "import workflows.merlin\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    if not gpus:
        assert ended.returncode == 0, ended.stderr
        return
    assert ended.returncode == 1
    last = ended.stderr.strip().splitlines()[-1]
    assert last.startswith("RuntimeError: cuDF 26.10.00 lacks cudf.DataFrame,")
    assert "--device cpu" in last
