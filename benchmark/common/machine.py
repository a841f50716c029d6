"""The machine behind a result: processor, cores, memory, versions and commit."""

from __future__ import annotations

import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil

from workflows.device.cores import usable_cores

_PACKAGES = ("nvtabular", "merlin-core", "dask", "pandas", "numpy", "pyarrow", "torch")
_ROOT = Path(__file__).parents[2]


def describe_machine() -> dict[str, Any]:
    """Facts as JSON values; None for those that this system does not report."""
    return {
        "cpu": _cpu_model(),
        "cores": usable_cores(),
        "memory_bytes": psutil.virtual_memory().total,
        "system": platform.platform(),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in _PACKAGES},
        "commit": commit(),
    }


def machine_line(machine: dict[str, Any]) -> str:
    """A machine in words, with the commit that was measured."""
    memory_gib = machine["memory_bytes"] / 2**30
    return (
        f"{machine['cores']} cores of {machine['cpu']}, {memory_gib:.0f} GiB, Python {machine['python']}, "
        f"torch {machine['packages']['torch']}; commit {machine['commit']}"
    )


def _cpu_model() -> str | None:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or None
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def commit() -> str | None:
    """The commit of this checkout, with `-dirty` if files differ from it."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        return subprocess.run(command, cwd=_ROOT, capture_output=True, check=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):  # no git, or no checkout
        return None
