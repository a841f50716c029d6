"""Cost of a whole process: wall and CPU seconds, and peak memory including all its children."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from workflows.common.errors import UserError, how_it_ended

_INTERVAL_S = 0.05
_MAX_SHARE = 0.05  # maximum share of a core spent sampling: reading PSS walks a process's page tables


@dataclass(frozen=True)
class Usage:
    """Resources used by one run of a command.

    Attributes:
        wall_s, cpu_s: from start to exit; CPU is user plus system time, including children that were waited for.
        peak_rss_bytes: peak of the summed resident memory; pages shared by processes count in each.
        peak_pss_bytes: the same with shared pages counted once; RSS if the system reports no PSS.
        output: the command's standard output and standard error, combined.
    """

    wall_s: float
    cpu_s: float
    peak_rss_bytes: int
    peak_pss_bytes: int
    output: str


def measure(command: Sequence[str | Path], cwd: Path | None = None) -> Usage:
    """Run a command to completion and measure it.

    Raises:
        CommandError: it exited with a status other than 0; the message includes the last lines of its output.
    """
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as output:
        started = time.perf_counter()
        process = subprocess.Popen(command, cwd=cwd, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT)
        sampler = _Sampler(process.pid)
        try:
            _, status, used = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
        finally:
            sampler.stop()
            if process.returncode is None:  # interrupted
                process.kill()
                process.wait()
        wall_s = time.perf_counter() - started
        output.seek(0)
        text = output.read()
    if process.returncode:
        raise failed(command, process.returncode, text)
    return Usage(wall_s, used.ru_utime + used.ru_stime, sampler.peak_rss, sampler.peak_pss, text)


class CommandError(UserError):
    """A command failed.

    Attributes:
        status: its exit status, or the negative number of the signal that ended it.
        output: its standard output and error.
    """

    def __init__(self, message: str, status: int, output: str) -> None:
        super().__init__(message)
        self.status, self.output = status, output


def failed(command: Sequence[str | Path], status: int, output: str) -> CommandError:
    """The error of a command that has failed: its own message if it gave one, otherwise its last lines."""
    own = re.split(r"^error: ", output, flags=re.MULTILINE)
    said = f" {own[-1].rstrip()}" if status == 2 and len(own) > 1 else "\n" + "\n".join(output.splitlines()[-15:])
    return CommandError(f"{shlex.join(map(str, command))} {how_it_ended(status)}:{said}", status, output)


class _Sampler:
    """A thread that samples a process and its descendants every `_INTERVAL_S`, or less often if sampling is slow."""

    def __init__(self, pid: int) -> None:
        self.peak_rss = self.peak_pss = 0
        self._root = psutil.Process(pid)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        pause_s = 0.0
        while not self._ended.wait(pause_s):
            began = time.thread_time()
            with suppress(psutil.Error):  # the process has exited meanwhile
                self._sample()
            pause_s = max(_INTERVAL_S, (time.thread_time() - began) / _MAX_SHARE)

    def _sample(self) -> None:
        rss = pss = 0
        for process in [self._root, *self._root.children(recursive=True)]:
            with suppress(psutil.Error):
                memory = _memory(process)
                rss += memory[0]
                pss += memory[1]
        self.peak_rss, self.peak_pss = max(self.peak_rss, rss), max(self.peak_pss, pss)


def _memory(process: psutil.Process) -> tuple[int, int]:
    """(RSS, PSS) in bytes."""
    with suppress(psutil.AccessDenied):
        full = process.memory_full_info()
        return full.rss, getattr(full, "pss", full.rss)
    rss = process.memory_info().rss
    return rss, rss
