"""House rules that import contracts cannot express, checked on syntax trees."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("workflows", "preprocessing", "model", "benchmark")
FILES = sorted([ROOT / "train.py", *(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))])
TREES = {path.relative_to(ROOT).as_posix(): ast.parse(path.read_text(encoding="utf-8")) for path in FILES}


def imported(tree: ast.AST) -> Iterator[str]:
    """Dotted names of all imported modules, including `import_module("name")`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and _dotted(node.func).split(".")[-1] in ("import_module", "__import__"):
            yield from (str(arg.value) for arg in node.args if isinstance(arg, ast.Constant))


def _dotted(node: ast.AST) -> str:
    if isinstance(node, ast.Attribute):
        return f"{_dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def within(name: str, module: str) -> bool:
    return name == module or name.startswith(f"{module}.")


def named(tree: ast.AST) -> set[str]:
    """All imported modules and all dotted names used."""
    used = {_dotted(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute | ast.Name)}
    return set(imported(tree)) | used


def calls(tree: ast.AST, function: str) -> Iterator[ast.Call]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and _dotted(node.func) == function:
            yield node


def test_the_files_are_found() -> None:
    assert {"train.py", "workflows/merlin.py", "workflows/device/frames.py", "model/network/neumf.py"} <= set(TREES)


@pytest.mark.parametrize("path", TREES)
def test_merlin_has_one_door(path: str) -> None:
    doors = {
        "nvtabular": {"workflows/merlin.py"},
        "merlin": {"workflows/merlin.py"},
        "dask.dataframe": {"workflows/merlin.py", "workflows/merlin_gaps.py"},  # completed for Merlin in the latter
    }
    through = {
        name for name in imported(TREES[path]) for door in doors if within(name, door) and path not in doors[door]
    }
    assert not through


TORCH_DOOR = "workflows/device/torch_device.py"
# Files that may use each GPU library; the Merlin door uses cuDF only to patch it for Merlin.
DOORS = {
    "cuda.bindings": {"workflows/device/frames.py"},  # CUDA's Python bindings
    "cudf": {"workflows/device/facts.py", "workflows/device/frames.py", "workflows/merlin_gaps.py"},
    "dask_cudf": {"workflows/merlin_gaps.py"},
    "cupy": {"workflows/device/facts.py", "workflows/device/frames.py", "workflows/device/kernels.py"},
    "dask_cuda": {"workflows/device/frames.py"},
    "rmm": {"workflows/device/facts.py", "workflows/device/frames.py"},
    "triton": {"model/training/fused/kernels.py"},
    "torch.cuda": {"workflows/device/facts.py", TORCH_DOOR, "workflows/device/kernels.py"},
}


@pytest.mark.parametrize("path", TREES)
def test_the_gpu_has_one_door(path: str) -> None:
    through = {name for name in named(TREES[path]) for door in DOORS if within(name, door) and path not in DOORS[door]}
    assert not through


@pytest.mark.parametrize("path", TREES)
def test_copies_are_left_running_in_one_place(path: str) -> None:
    # `to_device` knows the direction: a copy to the host that is left running is read before it has arrived.
    given = [
        keyword
        for function in ast.walk(TREES[path])
        if isinstance(function, ast.FunctionDef) and (path, function.name) != (TORCH_DOOR, "to_device")
        for keyword in ast.walk(function)
        if isinstance(keyword, ast.keyword) and keyword.arg == "non_blocking"
    ]
    assert not given
    # A tensor's copying methods could be given it by position, too: `.to(device, dtype, True)`, `.copy_(other, True)`.
    for call in ast.walk(TREES[path]):
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute):
            most = {"to": 2, "copy_": 1, "cuda": 1, "pin_memory": 1}.get(call.func.attr)
            assert most is None or len(call.args) <= most, ast.unparse(call)


@pytest.mark.parametrize("path", TREES)
def test_modules_are_imported_by_constant_names(path: str) -> None:
    # `import_module(variable)` could import anything; the doors choose among constants.
    allowed = {"workflows/device/frames.py", "workflows/merlin_gaps.py", "preprocessing/__main__.py"}
    computed = [
        ast.unparse(node)
        for node in ast.walk(TREES[path])
        if isinstance(node, ast.Call)
        and _dotted(node.func).split(".")[-1] in ("import_module", "__import__")
        and not isinstance(node.args[0], ast.Constant)
    ]
    assert path in allowed or not computed


@pytest.mark.parametrize("path", TREES)
def test_nothing_untrusted_is_executed(path: str) -> None:
    tree = TREES[path]
    assert not {
        n for n in imported(tree) for m in ("pickle", "cloudpickle", "dill", "joblib", "marshal") if within(n, m)
    }
    assert all(ast.unparse(call.args[1]) == "_Loader" for call in calls(tree, "yaml.load"))  # a `yaml.SafeLoader`
    assert not list(calls(tree, "eval")) + list(calls(tree, "exec"))
    for call in calls(tree, "torch.load"):
        given = {keyword.arg: keyword.value for keyword in call.keywords}
        assert isinstance(given.get("weights_only"), ast.Constant)
        assert given["weights_only"].value is True
        assert "map_location" in given  # files written on a GPU must load on a CPU
    for call in ast.walk(tree):
        if isinstance(call, ast.Call):
            assert not any(keyword.arg == "shell" for keyword in call.keywords)


@pytest.mark.parametrize("path", [path for path in TREES if path.startswith(("preprocessing/", "workflows/"))])
def test_preparing_data_does_not_load_torch(path: str) -> None:
    # Code that runs at import: everything outside functions and `if TYPE_CHECKING`.
    def at_import(node: ast.AST) -> Iterator[ast.AST]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            if isinstance(child, ast.If) and "TYPE_CHECKING" in _dotted(child.test):
                continue
            yield child
            yield from at_import(child)

    statements = [node for node in at_import(TREES[path]) if isinstance(node, ast.Import | ast.ImportFrom)]
    assert not {name for node in statements for name in imported(node) if within(name, "torch")}


@pytest.mark.parametrize("path", [path for path in TREES if path != "train.py"])
def test_no_library_code_exits_the_process(path: str) -> None:
    # User mistakes raise UserError; only the commands exit with a status.
    commands = {f"benchmark/{name}.py" for name in ("demo", "gpu_check/command", "suite/command", "suite/compare")}
    allowed = {"workflows/common/errors.py", *commands}
    assert path in allowed or not list(calls(TREES[path], "sys.exit")) + list(calls(TREES[path], "exit"))


def test_train_only_wires() -> None:
    assert len((ROOT / "train.py").read_text(encoding="utf-8").splitlines()) <= 120
