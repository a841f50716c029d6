"""Names that Merlin 23.08 imports and Dask and cuDF have since removed: restored, or stubs that raise when called.

`workflows/merlin.py`, the Merlin door, calls these functions before it imports Merlin.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any, NoReturn

import dask.dataframe as dd
from dask.dataframe.dispatch import hash_object_dispatch

_CUDF = "26.10"  # the release whose missing names are known
# Names that Merlin 23.08 uses from cuDF, by module; a test compares them with Merlin's sources.
TAKEN_FROM_CUDF = {
    "cudf": "DataFrame ListDtype RangeIndex Series StructDtype concat from_pandas read_parquet",
    "cudf.api.types": "is_list_dtype is_string_dtype",
    "cudf.core.column": "StringColumn as_column build_categorical_column build_column",
    "cudf.core.column.lists": "ListColumn",
    "cudf.core.dtypes": "ListDtype",
    "cudf.core.reshape": "concat",
    "cudf.io": "merge_parquet_filemetadata read_avro read_parquet read_parquet_metadata",
    "cudf.io.parquet": "ParquetWriter",
    "cudf.utils.dtypes": "cudf_dtype_from_pa_type",
    "cudf.utils.ioutils": "_is_local_filesystem",
    "dask_cudf": "DataFrame Series from_cudf from_dask_dataframe read_csv",
    "dask_cudf.io.parquet": "CudfEngine create_metadata_file",
}
# Three names are missing from cuDF 26.10. Merlin imports them for its own Parquet reader, list columns and moving
# collections to a GPU, none of which are used here.
GONE_FROM_CUDF = (
    "cudf.core.column.build_categorical_column",
    "cudf.core.column.build_column",
    "dask_cudf.from_dask_dataframe",
)


def _has(module: str, name: str) -> bool:
    try:
        return hasattr(importlib.import_module(module), name)
    except ImportError:
        return False


def _gone(path: str) -> Callable[..., NoReturn]:
    """A stub for a removed name that Merlin imports but this program never calls."""

    def gone(*_: Any, **__: Any) -> NoReturn:
        raise NotImplementedError(f"{path} no longer exists; the parts of Merlin 23.08 that call it are not used here")

    return gone


def complete_dask() -> None:
    """Restore or stub the names that Dask has removed since Merlin's last release."""
    core: Any = dd.core
    core.DataFrame, core.Series, core.hash_object_dispatch = dd.DataFrame, dd.Series, hash_object_dispatch
    core.new_dd_object = _gone("dask.dataframe.core.new_dd_object")
    optimize: Any = ModuleType("dask.dataframe.optimize")
    optimize.optimize = _gone("dask.dataframe.optimize.optimize")
    sys.modules[optimize.__name__] = optimize


def complete_cudf() -> bool:
    """Add stubs for the names that cuDF has removed since Merlin's last release; call it if Merlin sees a GPU.

    Returns:
        Whether Merlin can use the GPU: cuDF is installed and can be imported.

    Raises:
        RuntimeError: unexpected names are missing; Merlin would fail on them one by one.
    """
    try:
        version = importlib.import_module("cudf").__version__
    except Exception:  # not installed, or any error of its own: cuDF checks drivers and compilers when imported
        return False
    taken = (f"{module}.{name}" for module, names in TAKEN_FROM_CUDF.items() for name in names.split())
    missing = [path for path in taken if not _has(*path.rsplit(".", 1))]
    unknown = [path for path in missing if path not in GONE_FROM_CUDF or not version.startswith(f"{_CUDF}.")]
    if unknown:
        raise RuntimeError(
            f"cuDF {version} lacks {', '.join(unknown)}, which Merlin 23.08 needs; this program runs with cuDF "
            f"{_CUDF}: install it (make setup DEVICE=gpu, or requirements/gpu.txt), or hide the GPU "
            "(CUDA_VISIBLE_DEVICES=) and run with --device cpu"
        )
    for path in missing:
        module, name = path.rsplit(".", 1)
        setattr(importlib.import_module(module), name, _gone(path))
    return True
