"""Forked commands behave as started ones."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

SHOW = """
import json, os, random, sys, numpy, torch
print(json.dumps([__name__, sys.argv, sys.path[0], os.getcwd(), os.environ.get("GIVEN"), sys.stdin.read()]))
print(os.getpid(), os.getsid(0), torch.get_num_threads(), random.random(), numpy.random.random(), file=sys.stderr)
"""


@pytest.fixture(params=["started", "forked"])
def start(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[..., subprocess.Popen[str]]:
    """Start a program with the given arguments of `Popen`."""
    popen = subprocess.Popen if request.param == "started" else request.getfixturevalue("fork_server")

    def run(program: str, *flags: str, **more: Any) -> subprocess.Popen[str]:
        (tmp_path / "program.py").write_text(program)
        pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        command = [sys.executable, *(more.pop("run", None) or [str(tmp_path / "program.py")]), *flags]
        return popen(command, text=True, **{**pipes, **more})

    return run


def test_a_program_finds_its_surroundings(start: Callable[..., subprocess.Popen[str]], tmp_path: Path) -> None:
    environment = {**os.environ, "GIVEN": "ü", "OMP_NUM_THREADS": "1"}
    (tmp_path / "here").mkdir()
    process = start(SHOW, "-x", "a b", cwd=tmp_path / "here", env=environment, start_new_session=True)
    out, err = process.communicate("typed", timeout=60)
    argv, folder = [str(tmp_path / "program.py"), "-x", "a b"], str(tmp_path)
    assert out == f'["__main__", {_json(argv)}, "{folder}", "{folder}/here", "\\u00fc", "typed"]\n'
    assert process.returncode == 0
    assert err.split()[:3] == [str(process.pid), str(process.pid), "1"]


def _json(names: list[str]) -> str:
    return "[" + ", ".join(f'"{name}"' for name in names) + "]"


def test_each_program_draws_its_own_numbers(start: Callable[..., subprocess.Popen[str]]) -> None:
    drawn = [start(SHOW).communicate("", timeout=60)[1].split()[3:] for _ in range(2)]
    assert drawn[0][0] != drawn[1][0]
    assert drawn[0][1] != drawn[1][1]


def test_modules_run_from_the_working_directory(start: Callable[..., subprocess.Popen[str]], tmp_path: Path) -> None:
    process = start(SHOW, "y", run=["-m", "program"], cwd=tmp_path)
    out, _ = process.communicate("", timeout=60)
    assert f'["__main__", ["{tmp_path}/program.py", "y"], "{tmp_path}", "{tmp_path}"' in out


# A shell's background jobs ignore SIGINT, and so do tests that run in one.
_HEED = "signal.signal(signal.SIGINT, signal.default_int_handler); "


@pytest.mark.parametrize(
    ("end", "status"),
    [
        ("pass", 0),
        ("sys.exit(7)", 7),
        ("sys.exit('said why')", 1),
        ("raise KeyError('said why')", 1),
        ("os._exit(9)", 9),
        ("os.kill(os.getpid(), signal.SIGTERM); signal.pause()", -signal.SIGTERM),
        (f"{_HEED}os.kill(os.getpid(), signal.SIGINT); signal.pause()", -signal.SIGINT),
        ("os.abort()", -signal.SIGABRT),
    ],
)
def test_the_exit_status_and_what_was_said_arrive(
    start: Callable[..., subprocess.Popen[str]], end: str, status: int
) -> None:
    process = start(f"import atexit, os, signal, sys\natexit.register(print, 'at the end')\n{end}\n")
    out, err = process.communicate(timeout=60)
    assert process.returncode == process.wait() == status
    assert ("at the end" in out) == (status in (0, 1, 7, -signal.SIGINT))
    assert ("said why" in err) == ("said why" in end)
    assert ("Traceback" in err) == ("raise" in end or "SIGINT" in end)


def test_a_program_can_be_awaited_signalled_and_killed(start: Callable[..., subprocess.Popen[str]]) -> None:
    process = start("import signal\nprint('ready', flush=True)\nsignal.pause()")
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    assert process.poll() is None
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.01)
    process.kill()
    assert process.communicate(timeout=60) == ("", "")
    assert process.poll() == -signal.SIGKILL


def test_children_of_a_program_get_its_files(start: Callable[..., subprocess.Popen[str]], tmp_path: Path) -> None:
    reads, writes = os.pipe()
    (tmp_path / "child.py").write_text(f"import os\nos.write({writes}, b'from the child')\nraise SystemExit(5)\n")
    program = f"""
import subprocess, sys
done = subprocess.run([sys.executable, {str(tmp_path / "child.py")!r}], pass_fds=[{writes}])
print(done.returncode)
"""
    process = start(program, pass_fds=[writes])
    os.close(writes)
    assert process.communicate(timeout=60)[0] == "5\n"
    with os.fdopen(reads, "rb") as pipe:
        assert pipe.read() == b"from the child"  # up to the end: nobody else holds the other side


def test_a_fresh_start_only_for_what_is_read_at_the_start(fork_server: type[subprocess.Popen], tmp_path: Path) -> None:
    if fork_server is subprocess.Popen:
        return  # this system cannot fork them
    (tmp_path / "program.py").write_text("import os\nprint(os.getppid())\n")
    command, parents = [sys.executable, str(tmp_path / "program.py")], []
    # Not this process's environment: libraries that other tests import have changed it since the server's start.
    same = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), **dict(fork_server.fixed)}
    for more in ({}, {"OMP_NUM_THREADS": "1", "TORCHINDUCTOR_CACHE_DIR": "x"}, {"NUMBA_NUM_THREADS": "1"}):
        process = fork_server(command, env={**same, **more}, stdout=subprocess.PIPE, text=True)
        parents.append(int(process.communicate(timeout=60)[0]))
    assert [parent == os.getpid() for parent in parents] == [False, False, True]
