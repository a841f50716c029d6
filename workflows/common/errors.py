"""The single exception for user errors, and how a command exits on it."""

from __future__ import annotations

import gc
import os
import signal
import sys
from collections.abc import Callable
from types import TracebackType
from typing import NoReturn

from rich.console import Console
from rich.text import Text


class UserError(Exception):
    """An error the user can fix; the message says what was expected, what was found and what to do."""


_SHOWN = 1_000  # characters of the system's message, which holds the whole name of a file


def bounded(text: str, length: int = 60) -> str:
    """Text from a file, short enough for a message."""
    return text if len(text) <= length else text[:length] + "…"


def is_out_of_memory(err: BaseException) -> bool:
    """Whether Python, NumPy, Arrow, torch or the system (no memory for a thread or library) ran out of memory."""
    if isinstance(err, ImportError):
        return any(text in str(err).lower() for text in ("failed to map segment", "cannot allocate memory"))
    if isinstance(err, SystemError):  # of C code that had no memory for an exception
        return "without exception set" in str(err)
    texts = ("can't allocate memory", "can't start new thread", "CUDA out of memory")
    return isinstance(err, MemoryError) or (isinstance(err, RuntimeError) and any(one in str(err) for one in texts))


def _fail(reason: str) -> NoReturn:
    sys.stdout.flush()
    message = Text("error: ", style="bold red").append(reason, style="default not bold")
    try:
        Console(stderr=True, soft_wrap=True, highlight=False).print(message)
    except MemoryError:
        print(f"error: {reason}", file=sys.stderr)
    sys.exit(2)


def report_while_importing() -> None:
    """Let a command that runs out of memory before `run_command` end like others; other errors are as ever."""
    usual = sys.excepthook

    def report(kind: type[BaseException], err: BaseException, trace: TracebackType | None) -> None:
        if hasattr(sys, "ps1") or not (isinstance(err, UserError) or is_out_of_memory(err)):
            usual(kind, err, trace)
            return
        try:
            _fail(str(err) if isinstance(err, UserError) else _out_of_memory(err))
        finally:
            os._exit(2)  # an exception hook cannot set the exit status

    sys.excepthook = report


def _out_of_memory(err: BaseException) -> str:
    reason = str(err).splitlines()[0] if str(err) else "an allocation failed"
    return (
        f"out of memory ({reason}); free some memory, raise the limit, or ask for less (smaller batches, fewer "
        "factors, --memory-limit when preparing)"
    )


def run_command(main: Callable[[], None]) -> None:
    """Run a command; a user error exits with status 2 and one message, never a traceback.

    An OSError (no permission, disk full) counts as a user error, as its text names the file; so does too little memory.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # like Ctrl-C: unwind, so that nothing is left half-written
    try:
        main()
    except UserError as err:
        _fail(str(err))
    except OSError as err:
        _fail(bounded(str(err), _SHOWN))
    except (MemoryError, RuntimeError, ImportError, SystemError) as err:
        if not is_out_of_memory(err):
            raise
        _fail(_out_of_memory(err))
    except KeyboardInterrupt:
        sys.exit(130)
    finally:
        # The process is about to end: skip Python's final garbage collection, which can take a second.
        gc.freeze()
