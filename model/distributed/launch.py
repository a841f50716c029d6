"""`--gpus N`: start N processes of the same command, and stop them all when one fails."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import IO

from workflows.common.errors import UserError, how_it_ended
from workflows.device.cores import environment_of_rank

_GRACE_S = 5.0  # bad input makes every rank exit on its own; any still running after this are terminated
_POLL_S = 0.05
_REPORT_S = 2.0  # within which the launcher sees that a rank has ended
_WATCH = "NEUMF_LAUNCHER_PIPE"
_is_launched = False


def launch(processes: int, command: Sequence[str]) -> int:
    """Run a command in several local processes, with torchrun's environment variables.

    Rank 0 inherits this process's output. Another rank's output is shown only if it fails and rank 0 gives no reason.

    Returns:
        0, or the exit status of the first rank to fail.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    alive, kept_open = os.pipe()  # every rank reads it; it closes whenever this process ends, for any reason
    with ExitStack() as stack:
        ranks: list[subprocess.Popen] = []
        outputs: list[IO[bytes] | None] = []
        try:
            for rank in range(processes):
                output = stack.enter_context(tempfile.TemporaryFile()) if rank else None
                environment = {
                    **environment_of_rank(processes),
                    "RANK": str(rank),
                    "LOCAL_RANK": str(rank),
                    "LOCAL_WORLD_SIZE": str(processes),
                    "WORLD_SIZE": str(processes),
                    "MASTER_ADDR": "127.0.0.1",
                    "MASTER_PORT": str(port),
                    _WATCH: str(alive),
                }
                ranks.append(
                    subprocess.Popen(command, env=environment, stdout=output, stderr=output, pass_fds=(alive,))
                )
                outputs.append(output)
            return _wait(ranks, outputs)
        finally:
            _end(ranks)
            os.close(kept_open)
            os.close(alive)


def _wait(ranks: Sequence[subprocess.Popen], outputs: Sequence[IO[bytes] | None]) -> int:
    """Wait until all ranks have succeeded or one has failed."""
    while True:
        states = [rank.poll() for rank in ranks]
        # A killed rank first: the others fail because of it.
        failures = [(number, state) for number, state in enumerate(states) if state]
        failed, status = min(failures, key=lambda failure: failure[1] > 0, default=(0, 0))
        if status:
            break
        if all(state == 0 for state in states):
            return 0
        time.sleep(_POLL_S)
    deadline = time.monotonic() + (_GRACE_S if status == 2 else 0.0)
    while time.monotonic() < deadline and any(rank.poll() is None for rank in ranks):
        time.sleep(_POLL_S)
    first_spoke = (ranks[0].poll() or 0) > 0
    _end(ranks)
    output = outputs[failed]
    spoke = status == 2 and first_spoke if failed else status > 0  # rank 0's output has been shown
    if not spoke:
        if output is not None:
            output.seek(0)
            sys.stderr.buffer.write(output.read())
            sys.stderr.flush()
        print(f"error: rank {failed} of {len(ranks)} {how_it_ended(status)}; the others were stopped", file=sys.stderr)
    return status if status > 0 else 128 - status


def _end(ranks: Sequence[subprocess.Popen]) -> None:
    """Stop the ranks still running: SIGTERM, then SIGKILL."""
    for rank in ranks:
        if rank.poll() is None:
            rank.terminate()
    deadline = time.monotonic() + _GRACE_S
    for rank in ranks:
        try:
            rank.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            rank.kill()
            rank.wait()


def end_at_once(command: Callable[[], None]) -> None:
    """Run a rank's command and exit with its status, skipping Python's interpreter shutdown.

    Shutdown clears modules while torch's collective threads may still be releasing tensors, which occasionally aborts
    a process that has finished its work.
    """
    status = 0
    try:
        command()
    except SystemExit as ended:
        status = ended.code if isinstance(ended.code, int) else 1
    except BaseException:
        traceback.print_exc()
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def await_launcher() -> None:
    """In a rank that has lost another: give the launcher time to say what ended, and to end this process."""
    if _is_launched:
        time.sleep(_REPORT_S)


def end_with_launcher() -> None:
    """In a process started by `launch`: exit as soon as the launcher does, even if it was killed.

    Raises:
        UserError: the launcher's environment variable was not set by it.
    """
    given = os.environ.pop(_WATCH, None)
    if given is None:
        return
    global _is_launched
    if not given.isdigit():
        raise UserError(f"{_WATCH} should be set by --gpus only, got {given!r}; unset it")

    def watch(pipe: int) -> None:
        os.read(pipe, 1)  # nothing is ever written
        os.kill(os.getpid(), signal.SIGKILL)

    _is_launched = True
    threading.Thread(target=watch, args=(int(given),), daemon=True).start()
