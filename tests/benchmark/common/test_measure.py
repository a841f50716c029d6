"""A command is measured with all its descendants: the memory of a grandchild counts."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from benchmark.common.measure import failed, measure
from workflows.common.errors import UserError

_MIB = 1 << 20
# Works on the memory for half a second, so that it is sampled while allocated.
_ALLOCATE = """
import hashlib, time
memory = bytearray(b"1") * (100 << 20)
until = time.perf_counter() + 0.5
while time.perf_counter() < until:
    hashlib.sha256(memory).digest()
print("done")
"""
_IN_A_CHILD = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {_ALLOCATE!r}], check=True)"


@pytest.mark.parametrize("program", [_ALLOCATE, _IN_A_CHILD])
def test_memory_time_and_output_cover_the_whole_process_tree(program: str) -> None:
    usage = measure([sys.executable, "-c", program])
    assert 100 * _MIB < usage.peak_rss_bytes < 200 * _MIB
    assert 100 * _MIB < usage.peak_pss_bytes <= usage.peak_rss_bytes
    assert usage.wall_s > 0.5
    assert 0.1 < usage.cpu_s < usage.wall_s * 1.5
    assert usage.output == "done\n"


def test_without_pss_the_rss_stands_in(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: psutil.Process) -> Any:
        raise psutil.AccessDenied(self.pid)

    monkeypatch.setattr(psutil.Process, "memory_full_info", refuse)
    usage = measure([sys.executable, "-c", _ALLOCATE])
    assert usage.peak_pss_bytes == usage.peak_rss_bytes > 100 * _MIB


def test_a_failing_command_says_why(tmp_path: Path) -> None:
    program = "import os, sys; print(os.getcwd(), flush=True); sys.exit('no such log')"
    with pytest.raises(UserError, match="exited with status 1:") as caught:
        measure([sys.executable, "-c", program], cwd=tmp_path)
    assert str(caught.value).splitlines()[-2:] == [str(tmp_path), "no such log"]


def test_a_commands_own_message_is_passed_on_once() -> None:
    output = "read 3 rows\nerror: a.csv is full\n; mend it\n"
    assert str(failed(["x", "a b"], 2, output)) == "x 'a b' exited with status 2: a.csv is full\n; mend it"
    assert str(failed(["x"], -9, "read")) == "x was killed by SIGKILL (the system sends it when memory runs out):\nread"
    assert "was killed by signal 40:" in str(failed(["x"], -40, ""))


def test_an_interrupted_measurement_leaves_no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[int] = []

    def interrupt(pid: int, _: int) -> Any:
        started.append(pid)
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "wait4", interrupt)
    with pytest.raises(KeyboardInterrupt):
        measure([sys.executable, "-c", "while True: pass"])
    assert not psutil.pid_exists(started[0])
