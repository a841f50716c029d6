"""Processes started by `--gpus N`: if one fails, all are stopped and its error is shown."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from model.distributed import launch
from model.distributed.launch import end_with_launcher
from workflows.common.errors import UserError

LAUNCH = """
import sys
from model.distributed.launch import launch
sys.exit(launch(int(sys.argv[1]), [sys.executable, *sys.argv[2:]]))
"""
# Rank body that blocks until the rank is stopped.
WAIT = "import signal\nsignal.pause()"


def launched(size: int, folder: Path, body: str) -> subprocess.CompletedProcess[str]:
    (folder / "rank.py").write_text(f"import os, sys\nrank = int(os.environ['RANK'])\n{body}\n")
    command = [sys.executable, "-c", LAUNCH, str(size), str(folder / "rank.py")]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_ranks_get_torchruns_variables_and_only_rank_0_prints(tmp_path: Path) -> None:
    body = """
names = "RANK LOCAL_RANK WORLD_SIZE MASTER_ADDR MASTER_PORT"
open(f"{sys.argv[0]}.{rank}", "w").write(" ".join(os.environ[name] for name in names.split()))
print("rank", rank)
"""
    done = launched(3, tmp_path, body)
    assert (done.returncode, done.stdout, done.stderr) == (0, "rank 0\n", "")
    told = [(tmp_path / f"rank.py.{rank}").read_text().split() for rank in range(3)]
    assert [values[:4] for values in told] == [[str(rank), str(rank), "3", "127.0.0.1"] for rank in range(3)]
    assert len({values[4] for values in told}) == 1


@pytest.mark.parametrize("failing", [0, 2])
def test_a_failing_rank_stops_the_others_and_its_error_is_shown(tmp_path: Path, failing: int) -> None:
    body = f"if rank == {failing}:\n    sys.exit('no space left')\n{WAIT}"
    started = time.monotonic()
    done = launched(3, tmp_path, body)
    assert time.monotonic() - started < 30
    assert done.returncode == 1
    assert done.stderr.count("no space left") == 1
    assert ("rank 2 of 3 exited with status 1" in done.stderr) == (failing == 2)


@pytest.mark.parametrize("killed", [0, 1])
@pytest.mark.parametrize("name", ["SIGKILL", "SIGSEGV", "SIGRTMIN"])
def test_a_killed_rank_stops_the_others_and_is_reported(tmp_path: Path, killed: int, name: str) -> None:
    number = getattr(signal, name)
    body = f"import signal\nif rank == {killed}:\n    os.kill(os.getpid(), signal.{name})\n{WAIT}"
    done = launched(2, tmp_path, body)
    assert done.returncode == 128 + number
    how = name if name != "SIGRTMIN" else f"signal {int(number)}|SIGRTMIN"
    assert re.search(f"rank {killed} of 2 was killed by ({how})", done.stderr)


class _Ended:
    """A process that has ended."""

    def __init__(self, status: int) -> None:
        self.poll = lambda: status
        self.wait = lambda timeout: status


def test_the_killed_rank_is_reported_before_those_that_fail_because_of_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert launch._wait([_Ended(1), _Ended(-signal.SIGKILL)], [None, None]) == 128 + signal.SIGKILL  # type: ignore[list-item]
    assert "rank 1 of 2 was killed by SIGKILL" in capsys.readouterr().err


def test_a_user_error_on_all_ranks_is_reported_once(tmp_path: Path) -> None:
    done = launched(4, tmp_path, "print('error: no such folder', file=sys.stderr)\nsys.exit(2)")
    assert (done.returncode, done.stderr) == (2, "error: no such folder\n")


def test_ranks_that_ignore_sigterm_are_killed(tmp_path: Path) -> None:
    body = f"import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nif rank == 0:\n    sys.exit(3)\n{WAIT}"
    assert launched(2, tmp_path, body).returncode == 3


def test_ranks_exit_when_the_launcher_is_killed(tmp_path: Path) -> None:
    (tmp_path / "rank.py").write_text(
        "import os, sys\nfrom model.distributed.launch import end_with_launcher\nend_with_launcher()\n"
        f"print(os.getpid(), flush=True) if os.environ['RANK'] == '0' else None\n{WAIT}"
    )
    command = [sys.executable, "-c", LAUNCH, "2", str(tmp_path / "rank.py")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as launcher:
        assert launcher.stdout is not None
        assert int(launcher.stdout.readline()) != launcher.pid  # it is running
        launcher.kill()
        # The output reaches EOF once the last process holding it has exited.
        assert launcher.stdout.read() == ""


def test_without_a_launcher_there_is_no_watchdog(monkeypatch: pytest.MonkeyPatch) -> None:
    end_with_launcher()
    monkeypatch.setenv("NEUMF_LAUNCHER_PIPE", "x")
    with pytest.raises(UserError, match="NEUMF_LAUNCHER_PIPE"):
        end_with_launcher()
