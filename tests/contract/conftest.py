"""Looks up names in the GPU libraries, and reports at the end how many were checked and in which versions."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import os
import warnings
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from typing import Any

os.environ.setdefault("RAPIDS_NO_INITIALIZE", "1")  # cuDF then does not look for a GPU on import

import pytest

PACKAGES = ("cudf-cu13", "dask-cudf-cu13", "cupy-cuda13x", "rmm-cu13", "dask-cuda", "nvtabular", "dask", "torch")


@pytest.fixture(scope="session")
def find() -> Callable[[str], Any]:
    """Resolve a dotted path; skips if cuDF is not installed, raises AttributeError if the name does not exist."""
    if importlib.util.find_spec("cudf") is None:
        pytest.skip("cuDF is not installed; `make gpu-contract` installs and checks it")

    def follow(path: str) -> Any:
        first, *rest = path.split(".")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # cuDF: there is no GPU
            found, at = importlib.import_module(first), first
            for name in rest:
                at += f".{name}"
                if inspect.ismodule(found) and not hasattr(found, name) and importlib.util.find_spec(at):
                    importlib.import_module(at)
                found = getattr(found, name)
        return found

    return follow


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    told = [told for report in terminalreporter.getreports("passed") for told in report.user_properties]
    count = {
        key: sum(number for name, number in told if name == key) for key in ("names", "calls", "signatures", "merlin")
    }
    for name, registers in told:
        if name.startswith("registers"):
            terminalreporter.write_line(f"{name}, none spilled: {registers}")
    if not count["names"]:
        return
    try:
        versions = ", ".join(f"{package} {version(package)}" for package in PACKAGES)
    except PackageNotFoundError as err:
        versions = f"no {err}"
    terminalreporter.write_line(
        f"GPU contract: {count['names']} uses in our list ({count['calls']} calls, {count['signatures']} checked "
        f"against a signature); {count['merlin']} names that Merlin uses from modules; {versions}"
    )
