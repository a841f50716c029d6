"""Which process holds memory on which GPU while a program runs, as the driver sees it."""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

T = TypeVar("T")

_QUERY = ["nvidia-smi", "--query-compute-apps=gpu_uuid,pid,used_gpu_memory", "--format=csv,noheader,nounits"]
_INTERVAL_S = 0.5


def watch_memory(work: Callable[[], T]) -> tuple[T, dict[int, dict[str, float]]]:
    """Run `work`, and sample the GPU memory of all processes that appear meanwhile.

    Returns:
        Its result, and the most MiB seen by process and GPU; none where nvidia-smi is missing or shows no processes.
    """
    before, held = holders().keys(), dict[int, dict[str, float]]()
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(_INTERVAL_S):
            for process, on in holders().items():
                for gpu, mib in on.items() if process not in before else ():
                    known = held.setdefault(process, {})
                    known[gpu] = max(mib, known.get(gpu, 0.0))

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        result = work()
    finally:
        ended.set()
        thread.join()
    return result, held


def holders() -> dict[int, dict[str, float]]:
    """MiB of GPU memory in use now, by process and GPU (0 where the driver does not say how much)."""
    found: dict[int, dict[str, float]] = {}
    with suppress(OSError, subprocess.SubprocessError):
        shown = subprocess.run(_QUERY, capture_output=True, text=True, check=True, timeout=60).stdout
        for line in shown.splitlines():
            fields = [field.strip() for field in line.split(",")]
            if len(fields) == 3 and fields[1].isdigit():
                mib = float(fields[2]) if fields[2].replace(".", "", 1).isdigit() else 0.0
                found.setdefault(int(fields[1]), {})[fields[0]] = mib
    return found
