"""The cores that this process may use, and defaults for the thread pools of the libraries that run on them."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator, MutableMapping
from contextlib import suppress
from pathlib import Path

from workflows.device.cgroups import control_groups

_OPENMP_THREADS = "OMP_NUM_THREADS"  # torch, MKL, OpenBLAS and Arrow read it, too
# A thread of GNU's OpenMP that waits for others spins for 3 ms by default. Beside other programs it thereby keeps the
# thread that it waits for off the core. Where cores are free, 0.1 ms is enough not to sleep within a step of training.
# LLVM's OpenMP has a waiting time of its own, which the policy sets to 0, too.
_SPINNING, _SLEEPING = {"GOMP_SPINCOUNT": "10000"}, {"OMP_WAIT_POLICY": "passive"}
_SAMPLES, _INTERVAL_S = 5, 0.001
_chosen: set[str] = set()  # variables that `share_cores` has set, not the user


def usable_cores(root: Path = Path("/")) -> int:
    """Number of cores this process may use, at least 1: its affinity, or the CPU quota of its container if smaller.

    Args:
        root: where /proc and /sys are.
    """
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min([allowed, *(math.ceil(quota) for quota in _quotas(root))]))


def share_cores(environment: MutableMapping[str, str] = os.environ, root: Path = Path("/")) -> None:
    """Set what the environment leaves open: no more threads than usable cores; beside other programs, waiting threads
    sleep at once.

    The libraries read this when they are loaded, so it has to be called before torch, NumPy and Arrow are imported.
    """
    defaults: dict[str, str] = {}
    if list(_quotas(root)):  # they count the affinity themselves
        defaults[_OPENMP_THREADS] = str(usable_cores(root))
    if not {*_SPINNING, *_SLEEPING} & environment.keys():
        defaults |= _SLEEPING if _is_busy(root) else _SPINNING
    for name, value in defaults.items():
        if name not in environment:
            environment[name] = value
            _chosen.add(name)


def _is_busy(root: Path) -> bool:
    """Whether other programs run on cores that this one would use."""
    free = (os.cpu_count() or 1) - usable_cores(root)
    for _ in range(_SAMPLES):  # some processes run for a moment only
        with suppress(OSError, ValueError, IndexError):
            running = (root / "proc/loadavg").read_text(encoding="utf-8").split()[3].partition("/")[0]
            if int(running) - 1 > free:  # this process is one of them
                time.sleep(_INTERVAL_S)
                continue
        return False
    return True


def environment_of_rank(processes: int) -> dict[str, str]:
    """The environment for one of several processes that share the cores; a number of threads set by the user stays."""
    environment = dict(os.environ)
    if _OPENMP_THREADS not in environment or _OPENMP_THREADS in _chosen:
        environment[_OPENMP_THREADS] = str(max(1, usable_cores() // processes))
    return environment


def _quotas(root: Path) -> Iterator[float]:
    """The CPU quotas, in cores, of this process's control group and of those above it, of cgroup v1 and v2."""
    for version, folder in control_groups("cpu", root):
        with suppress(OSError, ValueError, ZeroDivisionError):
            quota = (_quota_v2 if version == 2 else _quota_v1)(folder)
            if quota > 0:
                yield quota


def _quota_v2(folder: Path) -> float:
    """Raises ValueError for "max"."""
    quota, period = map(int, (folder / "cpu.max").read_text(encoding="utf-8").split())
    return quota / period


def _quota_v1(folder: Path) -> float:
    """Negative if there is none."""
    quota, period = (int((folder / f"cpu.cfs_{name}_us").read_text(encoding="utf-8")) for name in ("quota", "period"))
    return quota / period
