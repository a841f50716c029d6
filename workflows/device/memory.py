"""The memory and disk space that are left, and the refusal of what cannot fit, before anything is allocated."""

from __future__ import annotations

import resource
import shutil
from collections.abc import Iterator
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

import psutil

from workflows.common.errors import UserError
from workflows.common.staging import published
from workflows.device.cgroups import control_groups

_V2 = ("memory.max", "memory.current", "")
_V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_")
_UNITS = ("KiB", "MiB", "GiB", "TiB", "PiB", "EiB")


def available_bytes(root: Path = Path("/")) -> int:
    """Bytes that this process may still allocate: what the system has free, its control groups and limits allow.

    Args:
        root: where /proc and /sys are, for control groups.
    """
    left = [shared_bytes(root)]
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)  # ulimit -v
    if soft != resource.RLIM_INFINITY:
        left.append(soft - psutil.Process().memory_info().vms)
    return max(0, min(left))


def shared_bytes(root: Path = Path("/")) -> int:
    """Bytes that this process and others that it starts may allocate together; see `available_bytes`."""
    return max(0, min([psutil.virtual_memory().available, *_left_in_groups(root)]))


def require_memory(needed_bytes: int, what: str, remedy: str, left_bytes: int | None = None) -> None:
    """Refuse what certainly does not fit; needs are lower bounds, so that nothing that would fit is refused.

    Args:
        what: what needs the memory, as the subject of a sentence.
        left_bytes: if not that of the host: of a GPU.

    Raises:
        UserError: says what is needed, and what there is.
    """
    left = available_bytes() if left_bytes is None else left_bytes
    if needed_bytes > left:
        raise UserError(
            f"{what} needs {shown_bytes(needed_bytes)} of memory or more, and {shown_bytes(left)} are left; {remedy}"
        )


def require_process_memory(least_bytes: int, started: int = 0) -> None:
    """Refuse to load libraries for which the system would kill this process, without a message.

    Args:
        least_bytes: that the smallest run takes, measured; includes what this process has already.
        started: processes that this one starts, and that take as much each.

    Raises:
        UserError: there is less.
    """
    left = shared_bytes() + (0 if started else psutil.Process().memory_info().rss)
    if left < least_bytes * max(1, started):
        whose = f"each of {started} processes" if started else "this command"
        raise UserError(
            f"{whose} needs {shown_bytes(least_bytes)} of memory or more, most of it for libraries, and "
            f"{shown_bytes(left)} are left here (machine, control group); end other programs or raise the limit"
        )


def require_address_space(least_bytes: int) -> None:
    """Refuse a limit (ulimit -v) under which libraries cannot be loaded, or their threads wait for ever.

    Raises:
        UserError: the limit is lower.
    """
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    if soft != resource.RLIM_INFINITY and soft < least_bytes:
        raise UserError(
            f"ulimit -v allows {shown_bytes(soft)} of address space, of which the libraries need "
            f"{shown_bytes(least_bytes)} or more; raise it (memory is limited by cgroups, or --memory-limit)"
        )


def torch_address_space() -> int:
    """Bytes of address space that a process with torch needs, about; its build for GPUs maps much larger libraries."""
    found = find_spec("torch")  # does not import it
    places = (found.submodule_search_locations if found is not None else None) or []
    return (21 if any((Path(place) / "lib/libtorch_cuda.so").exists() for place in places) else 12) << 28


def require_disk(needed_bytes: int, folder: Path, what: str, remedy: str) -> None:
    """As `require_memory`, for the disk of a folder."""
    left = shutil.disk_usage(folder).free
    if needed_bytes > left:
        raise UserError(
            f"{what} needs {shown_bytes(needed_bytes)} or more in {published(folder)}, and {shown_bytes(left)} are "
            f"free; {remedy}"
        )


def shown_bytes(number: int) -> str:
    """A size such as 1.5 GiB."""
    power = min(max(1, (max(number, 1).bit_length() - 1) // 10), len(_UNITS))
    return f"{number / (1 << 10 * power):,.1f} {_UNITS[power - 1]}"


def _left_in_groups(root: Path) -> Iterator[int]:
    for version, folder in control_groups("memory", root):
        limit, usage, prefix = _V2 if version == 2 else _V1
        with suppress(OSError, ValueError):  # ValueError: the limit is "max"
            allowed, used = (int((folder / name).read_text(encoding="utf-8")) for name in (limit, usage))
            yield allowed - used + _reclaimable(folder, prefix)


def _reclaimable(folder: Path, prefix: str) -> int:
    """Bytes of cached files, which the system gives up when memory is asked for."""
    lines = (line.split() for line in (folder / "memory.stat").read_text(encoding="utf-8").splitlines())
    return sum(int(size) for name, size in lines if name in (f"{prefix}active_file", f"{prefix}inactive_file"))
