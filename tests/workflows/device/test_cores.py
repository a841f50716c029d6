"""The number of usable cores from affinity and control groups, and the environment of thread pools."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from workflows.device import cores
from workflows.device.cores import environment_of_rank, share_cores, usable_cores

# What /proc/self/cgroup says, files below /sys/fs/cgroup, and the usable cores of 8.
V1 = "5:cpuset:/\n4:cpu,cpuacct:/docker/x\n0::/\n"
GROUPS: dict[str, tuple[str | None, dict[str, str], int]] = {
    "no control groups": (None, {}, 8),
    "garbage": ("?\n\n:/a\n4:\n", {"cpu.max": "100000 100000", "a/cpu.max": "100000 100000"}, 8),
    "v2, no limit": ("0::/a\n", {"a/cpu.max": "max 100000\n"}, 8),
    "v2, whole cores": ("0::/a\n", {"a/cpu.max": "300000 100000\n"}, 3),
    "v2, rounded up": ("0::/a\n", {"a/cpu.max": "150000 100000\n"}, 2),
    "v2, less than a core": ("0::/a\n", {"a/cpu.max": "1000 100000\n"}, 1),
    "v2, more than the cores": ("0::/a\n", {"a/cpu.max": "6400000 100000\n"}, 8),
    "v2, own group is the root": ("0::/\n", {"cpu.max": "200000 100000\n"}, 2),
    "v2, a group above": (
        "0::/pod/box/a\n",
        {"pod/cpu.max": "200000 50000", "pod/box/cpu.max": "max 100000", "pod/box/a/cpu.max": "600000 100000"},
        4,
    ),
    "v2, path of the host": ("0::/docker/123\n", {"cpu.max": "500000 100000\n"}, 5),
    "v2, outside the namespace": ("0::/../other\n", {"cpu.max": "500000 100000\n"}, 5),
    "v2, unreadable": ("0::/a\n", {"a/cpu.max/folder": "", "cpu.max": "x"}, 8),
    "v2, no period": ("0::/a\n", {"a/cpu.max": "100000 0"}, 8),
    "v1, no limit": (V1, {"cpu,cpuacct/docker/x/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 8),
    "v1": (
        V1,
        {"cpu,cpuacct/docker/x/cpu.cfs_quota_us": "250000", "cpu,cpuacct/docker/x/cpu.cfs_period_us": "100000"},
        3,
    ),
    "v1, a group above": (V1, {"cpu,cpuacct/cpu.cfs_quota_us": "90", "cpu,cpuacct/cpu.cfs_period_us": "50"}, 2),
    "v1, other name": (V1, {"cpu/docker/x/cpu.cfs_quota_us": "7", "cpu/docker/x/cpu.cfs_period_us": "1"}, 7),
    "v1, of other controllers": ("3:cpuset:/x\n", {"cpu/x/cpu.cfs_quota_us": "7", "cpu/x/cpu.cfs_period_us": "7"}, 8),
    "hybrid": (
        "1:cpu:/\n0::/x\n",
        {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000", "unified/x/cpu.max": "400000 100000"},
        4,
    ),
}


@pytest.fixture(autouse=True)
def eight_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.setattr(cores, "_chosen", set())


def written(root: Path, groups: str | None, files: dict[str, str]) -> Path:
    if groups is not None:
        files = {**{f"sys/fs/cgroup/{name}": text for name, text in files.items()}, "proc/self/cgroup": groups}
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


@pytest.mark.parametrize(("groups", "files", "expected"), GROUPS.values(), ids=GROUPS.keys())
def test_cores_are_the_smaller_of_affinity_and_quota(
    tmp_path: Path, groups: str | None, files: dict[str, str], expected: int
) -> None:
    root = written(tmp_path, groups, files)
    assert usable_cores(root) == expected
    environment: dict[str, str] = {}
    share_cores(environment, root)
    # Libraries know the affinity, but not the quota.
    assert environment.get("OMP_NUM_THREADS", "8") == str(expected)


@pytest.mark.parametrize(
    ("running", "quota", "sleeps"),
    [
        (["1"], "max", False),
        (["2"], "max", True),  # one other program, and threads on all 8 cores
        (["9"], "max", True),
        (["3", "2", "3", "1"], "max", False),  # others run for a moment
        (["5"], "300000", False),  # threads on 3 cores
        (["7"], "300000", True),
    ],
)
def test_waiting_threads_sleep_beside_other_programs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, running: list[str], quota: str, sleeps: bool
) -> None:
    root = written(tmp_path, "0::/\n", {"cpu.max": f"{quota} 100000"})
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    samples = iter([*running, *running[-1:] * 9])

    def sample(*_: object) -> None:
        (root / "proc/loadavg").write_text(f"0.00 0.01 9.05 {next(samples)}/321 12345\n")

    sample()
    monkeypatch.setattr(cores.time, "sleep", sample)
    environment: dict[str, str] = {}
    share_cores(environment, root)
    assert ("OMP_WAIT_POLICY" in environment, "GOMP_SPINCOUNT" in environment) == (sleeps, not sleeps)


@pytest.mark.parametrize("given", [{"OMP_WAIT_POLICY": "active"}, {"GOMP_SPINCOUNT": "5"}])
def test_a_users_way_of_waiting_stays(tmp_path: Path, given: dict[str, str]) -> None:
    environment = dict(given)
    share_cores(environment, tmp_path)
    assert environment == given


def test_what_the_user_has_set_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = written(tmp_path, "0::/\n", {"cpu.max": "200000 100000\n"})
    environment = {"OMP_NUM_THREADS": "5"}
    share_cores(environment, root)
    assert environment["OMP_NUM_THREADS"] == "5"
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert environment_of_rank(4)["OMP_NUM_THREADS"] == "5"


def test_ranks_divide_the_cores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "")  # restored in the end
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setenv("GIVEN", "1")
    monkeypatch.setattr(cores, "_quotas", lambda _: iter([5.5]))
    share_cores()
    assert os.environ["OMP_NUM_THREADS"] == "6"
    for processes, threads in ((1, "6"), (2, "3"), (4, "1"), (9, "1")):
        environment = environment_of_rank(processes)
        assert (environment["OMP_NUM_THREADS"], environment["GIVEN"]) == (threads, "1")


@pytest.mark.parametrize("package", ["model", "benchmark"])
def test_a_package_sets_the_environment_before_libraries_are_loaded(package: str) -> None:
    code = f"import sys, os, {package}; print(*sorted({{'torch', 'numpy', 'pyarrow'}} & sys.modules.keys()), "
    code += "len({'OMP_WAIT_POLICY', 'GOMP_SPINCOUNT'} & os.environ.keys()))"
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("OMP", "GOMP"))}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "1\n"
