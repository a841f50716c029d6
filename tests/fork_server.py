"""Starts the Python commands of tests by forking a process that has imported torch, Merlin and the rest already.

Those imports take 6 s of CPU time, most commands of the tests far less. The commands are real processes, as before:
with their own process id, working directory, environment, files and exit status. Linux only.
"""

from __future__ import annotations

import atexit
import fcntl
import gc
import importlib
import inspect
import json
import os
import runpy
import select
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, ClassVar, NoReturn

ROOT = Path(__file__).parent.parent
# Nothing here may start threads or run torch's operators, which a fork would not survive.
IMPORTED = """
    torch torch._dynamo torch.distributed numpy.random matplotlib.pyplot distributed tensorboardX PIL.Image
    workflows.merlin workflows.sampling.compiled model.compiled.train_loops model.compiled.score_loops
    model.run.session model.ensemble.search model.recommend.recommender model.serve.app preprocessing.prepare.pipeline
"""
# Read when Python or a library starts: a command with other values than the server's is started afresh.
READ_AT_START = ("PYTHON", "NUMBA", "MKL", "OPENBLAS", "LD_", "MPL")
SET_LATER = {"PYTHONPATH", "PYTHONWARNINGS", "PYTHONDONTWRITEBYTECODE"}
_PIPES = ("p2cread", "p2cwrite", "c2pread", "c2pwrite", "errread", "errwrite")
_LONGEST = 1 << 17  # bytes of a request, most of them its environment
_SPARE = 500  # file descriptors from here on are not used by commands


def read_at_start(environment: Mapping[str, str]) -> set[tuple[str, str]]:
    """The variables that cannot be changed after the start, and where a command finds modules."""
    found = {(k, v) for k, v in environment.items() if k.startswith(READ_AT_START) and k not in SET_LATER and v}
    places = environment.get("PYTHONPATH", "").split(os.pathsep)
    return found | {("PYTHONPATH", place) for place in places if place not in ("", str(ROOT))}


class Popen(subprocess.Popen):
    """`subprocess.Popen`; the fork server starts `python -m MODULE` and `python FILE`, the system everything else."""

    address: ClassVar[str]
    fixed: ClassVar[set[tuple[str, str]]]
    _status: socket.socket | None = None  # where the server reports the exit status

    def _execute_child(self, args: Any, *rest: Any) -> None:
        given = inspect.signature(super()._execute_child).bind(args, *rest).arguments
        environment = dict(os.environ if given["env"] is None else given["env"])
        if not self._forkable(given, environment):
            super()._execute_child(args, *rest)
            return
        command = [os.fspath(argument) for argument in args]
        handles = [given["p2cread"], given["c2pwrite"], given["errwrite"]]
        handles = [standard if handle == -1 else handle for standard, handle in enumerate(handles)]
        request = {
            "command": command[1:],
            "folder": os.fspath(given["cwd"] or Path.cwd()),
            "environment": environment,
            "places": [0, 1, 2, *given["pass_fds"]],
            "new_session": given["start_new_session"],
            "process_group": given["process_group"],
        }
        self._status = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            self._status.connect(self.address)
            socket.send_fds(self._status, [json.dumps(request).encode()], [*handles, *given["pass_fds"]])
            self.pid = int(self._status.recv(64))
            self._child_created = True
        finally:
            self._close_pipe_fds(*(given[name] for name in _PIPES))

    def _forkable(self, given: dict[str, Any], environment: dict[str, str]) -> bool:
        args = given["args"]
        if given["shell"] or given["preexec_fn"] or isinstance(args, (str, bytes, os.PathLike)) or len(args) < 2:
            return False
        python = given["executable"] or args[0]
        runs = args[1] == "-m" if str(args[1]).startswith("-") else str(args[1]).endswith(".py")
        return python == sys.executable and runs and read_at_start(environment) == self.fixed

    def _internal_poll(self, _deadstate: Any = None, *rest: Any, **more: Any) -> int | None:
        if self._status is None:
            return super()._internal_poll(_deadstate, *rest, **more)
        with suppress(subprocess.TimeoutExpired):
            self._wait(0)
        return self.returncode

    def _wait(self, timeout: float | None) -> int | None:
        if self._status is None:
            return super()._wait(timeout)
        if self.returncode is None:
            if not select.select([self._status], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(self.args, timeout)
            self.returncode = int(self._status.recv(64))
            self._status.close()
        return self.returncode


@contextmanager
def running() -> Iterator[type[subprocess.Popen]]:
    """Run a fork server for the block; yields the class that starts processes by it."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind("")  # an address of Linux's choice that is not a file
        listener.listen(64)
        Popen.address, Popen.fixed = listener.getsockname(), read_at_start(os.environ)
        command = [sys.executable, __file__, str(listener.fileno())]
        server = subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, pass_fds=[listener.fileno()]
        )
    with server:
        assert server.stdin is not None
        assert server.stdout is not None
        assert server.stdout.read() == b"ready"
        yield Popen
        server.stdin.close()  # ends the server


# --- The server ---------------------------------------------------------------------------------------------------


def prepare(listener: socket.socket) -> None:
    """Import what commands need, and tell the parent process."""
    Popen.address, Popen.fixed = listener.getsockname(), read_at_start(os.environ)
    os.environ.pop("OMP_NUM_THREADS", None)
    os.environ["OPENBLAS_NUM_THREADS"] = "1"  # it would start threads at import
    os.environ["TRITON_INTERPRET"] = "1"  # torch's optimisers import Triton, of which tests start nothing compiled
    sys.path[0] = str(ROOT)
    for name in IMPORTED.split():
        importlib.import_module(name)
    gc.collect()
    gc.freeze()
    os.write(1, b"ready")
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 1)
    os.close(nothing)


def serve(listener: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """Fork a process for each request, until standard input ends; returns in these processes only.

    Returns:
        The request, and the file descriptors that came with it.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the commands
    signal.signal(signal.SIGCHLD, lambda *_: None)
    ended, on_signal = os.pipe()
    os.set_blocking(on_signal, False)
    signal.set_wakeup_fd(on_signal)
    started: dict[int, socket.socket] = {}
    with selectors.DefaultSelector() as selector:
        for file in (0, listener.fileno(), ended):
            selector.register(file, selectors.EVENT_READ)
        while True:
            ready = {key.fd for key, _ in selector.select()}
            if listener.fileno() in ready:
                status, _ = listener.accept()
                content, files, *_ = socket.recv_fds(status, _LONGEST, 64)
                child = os.fork()
                if not child:
                    break
                for file in files:
                    os.close(file)
                started[child] = status
                status.send(str(child).encode())
            if ended in ready:
                os.read(ended, 1024)
                report(started)
            if 0 in ready:
                os._exit(0)
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for file in (ended, on_signal):
        os.close(file)
    for connection in (listener, status, *started.values()):
        connection.close()
    return json.loads(content), files


def report(started: dict[int, socket.socket]) -> None:
    """Report the exit status of each process that has ended."""
    while started:
        child, status = os.waitpid(-1, os.WNOHANG)
        if not child:
            return
        with started.pop(child) as connection, suppress(OSError):  # whoever started it may be gone
            connection.send(str(os.waitstatus_to_exitcode(status)).encode())


def become(request: dict[str, Any], files: Sequence[int]) -> None:
    """Make this process what a fresh one would be at its start."""
    if request["new_session"]:
        os.setsid()
    if request["process_group"] not in (None, -1):
        os.setpgid(0, request["process_group"])
    spare = [fcntl.fcntl(file, fcntl.F_DUPFD_CLOEXEC, _SPARE) for file in files]
    for file in files:
        os.close(file)
    for file, place in zip(spare, request["places"], strict=True):
        os.dup2(file, place)
        os.close(file)
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    tempfile.tempdir = None
    sys.dont_write_bytecode = bool(os.environ.get("PYTHONDONTWRITEBYTECODE"))
    numpy.random.seed()
    if threads := os.environ.get("OMP_NUM_THREADS"):
        torch.set_num_threads(int(threads))
    subprocess.Popen = Popen  # type: ignore[misc]  # its own children, too


def run(command: Sequence[str]) -> None:
    """Run `-m MODULE …` or `FILE …` as Python would."""
    if command[0] == "-m":
        sys.path[0], sys.argv = str(Path.cwd()), list(command[1:])
        runpy.run_module(command[1], run_name="__main__", alter_sys=True)
    else:
        script = Path(command[0]).absolute()
        sys.path[0], sys.argv = str(script.parent), list(command)
        runpy.run_path(str(script), run_name="__main__")


def end(command: Sequence[str]) -> NoReturn:
    """Run a command and exit as Python would, except that nothing is torn down, which takes 0.5 s."""
    status, interrupted = 0, False
    try:
        run(command)
    except SystemExit as ended:
        status = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
        if status and status is not ended.code:
            print(ended.code, file=sys.stderr)
    except BaseException as error:
        status, interrupted = 1, isinstance(error, KeyboardInterrupt)
        traceback.print_exc()
    threading._shutdown()  # type: ignore[attr-defined]  # waits for threads
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    if interrupted:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    os._exit(status & 0xFF)


if __name__ == "__main__":
    with socket.socket(fileno=int(sys.argv[1])) as requests:
        prepare(requests)
        import numpy
        import torch

        request, files = serve(requests)
    become(request, files)
    end(request["command"])
