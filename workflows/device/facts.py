"""What a GPU's libraries say about themselves, for reports: compiler, memory pool, free memory, peer access, cuDF."""

from __future__ import annotations

import importlib
import time
from typing import Any

from workflows.device.kernels import OPTIONS, SOURCE


def gpu_memory() -> list[dict[str, Any]]:
    """Name, free and total bytes of each visible GPU, and the indices of the others that it cannot access directly."""
    import torch

    number = torch.cuda.device_count() if torch.cuda.is_available() else 0
    found = []
    for index in range(number):
        free, total = torch.cuda.mem_get_info(index)
        others = [other for other in range(number) if other != index]
        without = [other for other in others if not torch.cuda.can_device_access_peer(index, other)]
        name = torch.cuda.get_device_name(index)
        found.append({"name": name, "free_bytes": free, "total_bytes": total, "no_peer_access_to": without})
    return found


def compile_kernels() -> dict[str, Any]:
    """NVRTC's version, and the seconds it takes to compile `kernels.cu` and load it; cached code is faster.

    Raises:
        ImportError, RuntimeError: CuPy or NVRTC is missing, or the compilation fails.
    """
    cupy = importlib.import_module("cupy")
    version = cupy.cuda.nvrtc.getVersion()
    started = time.perf_counter()
    cupy.RawModule(code=SOURCE.read_text(encoding="utf-8"), options=OPTIONS).compile()
    return {"NVRTC": list(version), "kernels.cu compiled in seconds": time.perf_counter() - started}


def memory_pool() -> str:
    """The class of RMM's memory resource of the current GPU, with those below it, outermost first."""
    rmm = importlib.import_module("rmm")
    names, resource = [], rmm.mr.get_current_device_resource()
    while resource is not None:
        names.append(type(resource).__name__)
        resource = getattr(resource, "upstream_mr", None)
    return " over ".join(names)


def cudf_version() -> str:
    """cuDF's version, if it can be imported; raises what its import raises."""
    return str(importlib.import_module("cudf").__version__)
