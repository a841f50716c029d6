"""The names that Merlin 23.08 uses from cuDF, CuPy and RMM modules, read from its sources."""

from __future__ import annotations

import ast
import functools
import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from workflows.merlin_gaps import GONE_FROM_CUDF, TAKEN_FROM_CUDF

LIBRARIES = ("cudf", "cupy", "dask_cuda", "dask_cudf", "rmm")
OTHER_WAYS = ("merlin/testing", "merlin/dataloader/utils", "merlin/dataloader/tf_utils", "nvtabular/framework_utils")
OTHER_WAYS += ("nvtabular/tools", "nvtabular/loader")  # TensorFlow, and Merlin's own tests and tools


def merlin_sources() -> Iterator[Path]:
    site = Path(importlib.util.find_spec("nvtabular").origin).parents[1]
    for package in ("merlin", "nvtabular"):
        for path in (site / package).rglob("*.py"):
            if not path.relative_to(site).as_posix().startswith(OTHER_WAYS):
                yield path


def taken_from_modules(tree: ast.AST) -> set[str]:
    """Dotted paths that a Merlin file uses from the GPU libraries, except fallbacks for older versions."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ExceptHandler):  # imports for older versions
            node.body = []
    names, found = {}, set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.asname or alias.name: alias.name for alias in node.names if alias.name in LIBRARIES}
        elif isinstance(node, ast.ImportFrom) and node.module:
            inside = node.module.split(".")[0] in LIBRARIES
            for alias in node.names:
                if inside or (node.module == "merlin.core.compat" and alias.name in LIBRARIES):
                    path = f"{node.module}.{alias.name}" if inside else alias.name
                    names[alias.asname or alias.name] = path
                    found.add(path)

    def path_of(node: ast.AST) -> str:
        if isinstance(node, ast.Attribute):
            base = path_of(node.value)
            return base and f"{base}.{node.attr}"
        return names.get(node.id, "") if isinstance(node, ast.Name) else ""

    return found | {path for node in ast.walk(tree) if isinstance(node, ast.Attribute) and (path := path_of(node))}


@functools.cache
def taken_by_merlin() -> frozenset[str]:
    found: set[str] = set()
    for path in merlin_sources():
        found |= taken_from_modules(ast.parse(path.read_text(encoding="utf-8")))
    return frozenset(found)


def test_the_merlin_door_lists_every_cudf_name_that_merlin_uses() -> None:
    known = {module: names.split() for module, names in TAKEN_FROM_CUDF.items()}
    modules = sorted(known, key=len, reverse=True)
    found: dict[str, set[str]] = {module: set() for module in known}
    for path in taken_by_merlin():
        if path.split(".")[0] in ("cudf", "dask_cudf"):
            module = next(module for module in modules if f"{path}.".startswith(f"{module}."))
            found[module].add(path[len(module) + 1 :].split(".")[0])
    parents = {".".join(module.split(".")[:n]) for module in known for n in range(1, 5)}
    taken = {
        module: sorted(name for name in names if name and name != "__version__" and f"{module}.{name}" not in parents)
        for module, names in found.items()
    }
    assert taken == known


def test_the_names_that_merlin_uses_are_read_from_its_sources() -> None:
    assert len(list(merlin_sources())) > 100
    assert {"cudf.core.column.build_categorical_column", "dask_cudf.from_dask_dataframe"} <= taken_by_merlin()
    assert {"cupy.random.RandomState", "rmm.reinitialize", "cudf.DataFrame.from_arrow"} <= taken_by_merlin()


# Names used inside Merlin functions that we never call: column similarity, a dataset of one pandas dataframe on a GPU,
# Merlin's own Parquet reader.
GONE_UNREACHED = {
    "cudf.DataFrame.from_pandas",
    "cupy.sparse",
    "cupy.sparse.coo_matrix",
    "dask_cudf.io.parquet.CudfEngine.read_metadata",
}


def test_merlin_finds_every_name_except_those_known_to_be_gone(
    find: Callable[[str], Any], record_property: Callable[[str, object], None]
) -> None:
    def is_missing(path: str) -> bool:
        try:
            find(path)
        except (AttributeError, ImportError):
            return True
        return False

    missing = {path for path in taken_by_merlin() if is_missing(path)}
    assert missing == set(GONE_FROM_CUDF) | GONE_UNREACHED
    record_property("merlin", len(taken_by_merlin()))
