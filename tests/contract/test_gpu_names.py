"""The GPU library names that we use: the list against our code, and against the libraries themselves.

The list is `gpu_names.txt`. That it matches our code is always checked; that the libraries have these names with
matching signatures is checked only if they are installed (`make gpu-contract`; no GPU is needed).
"""

from __future__ import annotations

import ast
import importlib.util
import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from workflows.operators.leave_one_out import _OUTPUT

Find = Callable[[str], Any]

ROOT = Path(__file__).parents[2]
LIST = Path(__file__).with_name("gpu_names.txt")
SOURCES = [path for package in ("workflows", "preprocessing", "model") for path in (ROOT / package).rglob("*.py")]
LIBRARIES = ("cuda", "cudf", "cupy", "dask_cuda", "dask_cudf", "rmm")
ARRAYS, FRAME, COLUMN = "array_api_compat.cupy", "cudf.DataFrame", "cudf.Series"
HAS_CUDF = importlib.util.find_spec("cudf") is not None

_DEVICE = {"device.frames": "cudf", "device.arrays": "cupy"}
# Types implied by variable names, by file; "df" is always a dataframe.
VARIABLES = {
    "workflows/device/frames.py": {"self.frames": "cudf", "self.arrays": "cupy", "texts": COLUMN},
    "workflows/operators/encode.py": {"column": COLUMN},
    "workflows/merlin.py": {"merged": FRAME, "output": FRAME, "meta": FRAME},
    "preprocessing/sources/gpu_reader.py": _DEVICE | {"frame": FRAME, "column": COLUMN},
    "preprocessing/sources/gpu_fields.py": _DEVICE,
    "preprocessing/prepare/gpu_rows.py": _DEVICE | {"frame": FRAME},
    "preprocessing/prepare/resident.py": _DEVICE | {"frame": FRAME},
    "preprocessing/prepare/text_ids.py": _DEVICE,
    "preprocessing/prepare/writer.py": {"self.device.frames": "cudf", "rows": FRAME},
}


# --- The list ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Name:
    """A line of the list: a dotted path and how it is called (None if it is only read)."""

    path: str
    call: ast.Call | None

    @staticmethod
    def of(line: str) -> Name:
        node = ast.parse(line.replace("**", "**_"), mode="eval").body
        call = node if isinstance(node, ast.Call) else None
        return Name(ast.unparse(call.func if call else node), call)

    def bind(self, told: inspect.Signature) -> None:
        """Raises TypeError if the call does not fit the signature."""
        assert self.call is not None
        told.bind(*self.call.args, **{word.arg or "some_other": None for word in self.call.keywords})


def listed() -> dict[str, list[str]]:
    """The lines in each section of the list."""
    parts: dict[str, list[str]] = {}
    for line in LIST.read_text(encoding="utf-8").splitlines():
        text = line.split("#")[0].strip()
        if text.startswith("["):
            lines = parts.setdefault(text[1 : text.index("]")], [])
        elif text:
            lines.append(text)
    return parts


PARTS = listed()
PRESENT = [line for part in ("arrays", "frames", "values", "merlin") for line in PARTS[part]]


# --- Uses in our code -------------------------------------------------------------------------------------------


class _Uses(ast.NodeVisitor):
    """Collects the GPU library names that a file uses, in the format of the list; skips CPU-only branches."""

    def __init__(self, tree: ast.AST, variables: dict[str, str]) -> None:
        self.found: set[str] = set()
        self._variables = {"df": FRAME, "xp": ARRAYS, **variables}
        for node in ast.walk(tree):  # cupy = importlib.import_module("cupy")
            if isinstance(node, ast.Assign) and (library := self._library(node.value)):
                self._variables |= {target.id: library for target in node.targets if isinstance(target, ast.Name)}
        self.visit(tree)

    def _library(self, node: ast.AST) -> str | None:
        """The GPU module that an expression evaluates to, if any."""
        if not isinstance(node, ast.Call):
            return None
        function = ast.unparse(node.func).split(".")[-1]
        if function == "import_module" and isinstance(node.args[0], ast.Constant):
            return node.args[0].value if node.args[0].value.split(".")[0] in LIBRARIES else None
        return {"array_namespace": ARRAYS, "frames_of": "cudf"}.get(function)

    def _path(self, node: ast.AST) -> str | None:
        """The dotted path of an expression, if it can be inferred."""
        if library := self._library(node):
            return library
        if ast.unparse(node) in self._variables:
            return self._variables[ast.unparse(node)]
        if isinstance(node, ast.Subscript):
            return COLUMN if self._path(node.value) == FRAME else None
        if isinstance(node, ast.Attribute) and (base := self._path(node.value)):
            return f"{base}.{node.attr}"
        return None

    def visit_Attribute(self, node: ast.Attribute) -> None:
        if path := self._path(node):
            self.found.add(path)
        else:
            self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        path = self._path(node.func) if isinstance(node.func, ast.Attribute) else None
        if ast.unparse(node.func) == "type(df)":
            path = FRAME
        if ast.unparse(node.func) == "getattr" and self._path(node.args[0]) == ARRAYS:
            assert ast.unparse(node.args[1]).startswith(("_OUTPUT[", "ROW_DTYPES[")), (
                "array code should spell out names"
            )
            self.found |= {f"{ARRAYS}.{dtype}" for dtype in _OUTPUT.values()}
        if path is None:
            self.generic_visit(node)
            return
        given = ["_" for _ in node.args] + [f"{word.arg}=_" if word.arg else "**" for word in node.keywords]
        self.found.add(f"{path}({', '.join(given)})")
        for value in [*node.args, *(word.value for word in node.keywords)]:
            self.visit(value)

    def visit_If(self, node: ast.If) -> None:
        self._visit_branches(node, node.body, node.orelse)

    def visit_IfExp(self, node: ast.IfExp) -> None:
        self._visit_branches(node, [node.body], [node.orelse])

    def _visit_branches(self, node: ast.If | ast.IfExp, body: list[Any], others: list[Any]) -> None:
        asked = ast.unparse(node.test)
        if asked.endswith("on_cpu"):
            body, others = (body, []) if asked.startswith("not ") else ([], others)
        for part in [node.test, *body, *others]:
            self.visit(part)


def used(path: Path) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return _Uses(tree, VARIABLES.get(path.relative_to(ROOT).as_posix(), {})).found


def test_the_list_matches_the_uses_in_our_code() -> None:
    found = set().union(*map(used, SOURCES))
    arrays = {line for line in found if line.startswith(f"{ARRAYS}.")}
    assert set(PARTS["arrays"]) == arrays
    assert set(PARTS["frames"]) == found - arrays


def test_uses_are_extracted_from_code() -> None:
    code = """
        xp = array_namespace(users)
        y = xp.sort(xp.take(users, order), axis=1) + array_namespace(x).max(x, **more)
        cuda = importlib.import_module("dask_cuda")
        cluster = cuda.LocalCUDACluster(n_workers=2)
        df = self.frames.DataFrame.from_arrow(table) if not self.on_cpu else table.to_pandas()
        a = self.frames.A(x, copy=False) if self.on_cpu else self.frames.B(x)
        if self.on_cpu:
            df.only_on_a_cpu()
        frames_of(df).Index(df[name].unique())
        type(df)({name: df.columns})
        other.unknown(xp.int8)
    """
    tree = ast.parse("if True:\n" + code)
    assert _Uses(tree, {"self.frames": "cudf"}).found == {
        f"{ARRAYS}.sort(_, axis=_)",
        f"{ARRAYS}.take(_, _)",
        f"{ARRAYS}.max(_, **)",
        f"{ARRAYS}.int8",
        "dask_cuda.LocalCUDACluster(n_workers=_)",
        "cudf.DataFrame.from_arrow(_)",
        "cudf.B(_)",
        "cudf.Index(_)",
        "cudf.Series.unique()",
        "cudf.DataFrame(_)",
        "cudf.DataFrame.columns",
    }


def test_the_list_is_sorted_without_duplicates() -> None:
    assert list(PARTS) == ["arrays", "frames", "values", "merlin", "absent"]
    for part, lines in PARTS.items():
        assert lines == sorted(set(lines)), part


def test_our_code_never_calls_absent_methods() -> None:
    for path in SOURCES:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        called = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
        assert not called & {"to_cpu", "to_gpu", "convert_data", "to_dask_dataframe"}


# --- The libraries themselves -----------------------------------------------------------------------------------


def signature(find: Find, path: str) -> inspect.Signature | None:
    """The signature of the callable at a path, methods without `self`; None if a compiled function has none."""
    owner, _, name = path.rpartition(".")
    place, found = find(owner), find(path)
    try:
        told = inspect.signature(found)
    except (TypeError, ValueError):
        # Cython writes the signature into the first line of the docstring.
        match = re.match(rf"[\w.]*\b{name}\((.*?)\)(?: ->.*)?$", (found.__doc__ or "").split("\n")[0])
        if match is None:
            return None
        places: dict[str, Any] = {}
        parameters = re.sub(r"\b\w+ (?=\w+(?:[=,)]|$))", "", match[1].replace("=u", "="))  # without Cython's types
        exec(f"def told({parameters}): pass", places)
        told = inspect.signature(places["told"])
    if inspect.isclass(place) and not isinstance(inspect.getattr_static(place, name), classmethod | staticmethod):
        return told.replace(parameters=list(told.parameters.values())[1:])
    return told


@pytest.mark.parametrize("line", PRESENT if HAS_CUDF else PRESENT[:1])
def test_the_libraries_have_each_name_and_accept_each_call(
    find: Find, line: str, record_property: Callable[[str, object], None]
) -> None:
    name = Name.of(line)
    found = find(name.path)
    record_property("names", 1)
    if name.call is None:
        return
    assert callable(found)
    record_property("calls", 1)
    told = signature(find, name.path)
    if told is not None:
        record_property("signatures", 1)
        name.bind(told)


@pytest.mark.parametrize(
    "line",
    ["cudf.DataFrame.to_arrow(index=_)", "cudf.Series.unique(_, _)", "cupy.ndarray.get(nothing=_)", "cudf.concat()"],
)
def test_a_call_that_does_not_fit_is_detected(find: Find, line: str) -> None:
    name = Name.of(line)
    told = signature(find, name.path)
    assert told is not None
    with pytest.raises(TypeError):
        name.bind(told)


@pytest.mark.parametrize("line", PARTS["absent"])
def test_names_listed_as_absent_are_absent(find: Find, line: str) -> None:
    with pytest.raises(AttributeError):
        find(Name.of(line).path)
