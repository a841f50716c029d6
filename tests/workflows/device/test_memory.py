"""Memory left under limits of control groups and processes, and the errors where it does not suffice."""

from __future__ import annotations

import resource
from pathlib import Path

import psutil
import pytest

from workflows.common.errors import UserError
from workflows.device import memory
from workflows.device.memory import (
    available_bytes,
    require_address_space,
    require_disk,
    require_memory,
    require_process_memory,
    shared_bytes,
    shown_bytes,
)  # fmt: skip

MIB = 1 << 20


def group(root: Path, folder: str, **files: str) -> None:
    (root / folder).mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (root / folder / name.replace("_dot_", ".")).write_text(content + "\n")


def test_the_smallest_limit_counts_and_caches_are_given_back(tmp_path: Path) -> None:
    group(tmp_path, "proc/self", cgroup="0::/a/b")
    stat = f"anon {MIB}\nactive_file {2 * MIB}\ninactive_file {MIB}\nshmem {MIB}"
    group(tmp_path, "sys/fs/cgroup/a/b", memory_dot_max="max", memory_dot_current=str(MIB), memory_dot_stat=stat)
    assert shared_bytes(tmp_path) > 64 * MIB
    full = {"memory_dot_max": str(10 * MIB), "memory_dot_current": str(9 * MIB), "memory_dot_stat": stat}
    group(tmp_path, "sys/fs/cgroup/a", **full)
    assert shared_bytes(tmp_path) == available_bytes(tmp_path) == 4 * MIB
    group(tmp_path, "sys/fs/cgroup/a", memory_dot_max=str(5 * MIB))
    assert shared_bytes(tmp_path) == 0


def test_version_1_has_other_names(tmp_path: Path) -> None:
    group(tmp_path, "proc/self", cgroup="5:cpu:/\n7:memory:/docker/x")
    files = {"memory_dot_limit_in_bytes": str(8 * MIB), "memory_dot_usage_in_bytes": str(7 * MIB)}
    group(tmp_path, "sys/fs/cgroup/memory", **files, memory_dot_stat=f"inactive_file 1\ntotal_inactive_file {2 * MIB}")
    assert shared_bytes(tmp_path) == 3 * MIB


def test_a_limit_of_the_process_counts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    used = psutil.Process().memory_info().vms
    monkeypatch.setattr(resource, "getrlimit", lambda _: (used + 64 * MIB, resource.RLIM_INFINITY))
    assert 0 < available_bytes(tmp_path) <= 128 * MIB < shared_bytes(tmp_path)
    require_address_space(used)
    with pytest.raises(UserError, match=r"ulimit -v allows .* of address space"):
        require_address_space(used + 65 * MIB)


def test_what_cannot_fit_is_refused_with_both_sizes(tmp_path: Path) -> None:
    require_memory(3 * MIB, "it", "make it smaller", 3 * MIB)
    with pytest.raises(UserError, match=r"^it needs 4\.0 MiB of memory or more, and 3\.0 MiB are left; make"):
        require_memory(4 * MIB, "it", "make it smaller", 3 * MIB)
    require_disk(1, tmp_path, "it", "")
    staged = tmp_path / ".out.0123abcd.neumf.partial" / "out"
    staged.mkdir(parents=True)
    with pytest.raises(UserError, match=f"in {tmp_path}/out, and"):
        require_disk(10**20, staged, "it", "")
    with pytest.raises(UserError, match=r"it needs .* EiB or more in .* are free; make it smaller"):
        require_disk(10**20, tmp_path, "it", "make it smaller")


def test_processes_start_only_with_memory_for_their_libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "shared_bytes", lambda: 10 * MIB)
    held = psutil.Process().memory_info().rss
    require_process_memory(held)  # which this one has already
    with pytest.raises(UserError, match=r"this command needs .* and .* are left here"):
        require_process_memory(held + 100 * MIB)
    require_process_memory(5 * MIB, started=2)
    with pytest.raises(UserError, match=r"each of 2 processes needs 6\.0 MiB .* and 10\.0 MiB are left"):
        require_process_memory(6 * MIB, started=2)


@pytest.mark.parametrize(
    ("number", "shown"),
    [(0, "0.0 KiB"), (1536, "1.5 KiB"), (MIB, "1.0 MiB"), (5 << 40, "5.0 TiB"), (1 << 80, "1,048,576.0 EiB")],
)
def test_sizes_are_short(number: int, shown: str) -> None:
    assert shown_bytes(number) == shown
