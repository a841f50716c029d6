"""The single exception for user errors, and how a command exits on it."""

from __future__ import annotations

import gc
import signal
import sys
from collections.abc import Callable
from typing import NoReturn

from rich.console import Console
from rich.text import Text


class UserError(Exception):
    """An error the user can fix; the message says what was expected, what was found and what to do."""


def bounded(text: str, length: int = 60) -> str:
    """Text from a file, short enough for a message."""
    return text if len(text) <= length else text[:length] + "…"


def is_out_of_memory(err: BaseException) -> bool:
    """Whether Python, NumPy, Arrow, torch or the system (no memory for a thread) ran out of memory."""
    texts = ("can't allocate memory", "can't start new thread", "CUDA out of memory")
    return isinstance(err, MemoryError) or (isinstance(err, RuntimeError) and any(one in str(err) for one in texts))


def _fail(reason: str) -> NoReturn:
    sys.stdout.flush()
    message = Text("error: ", style="bold red").append(reason, style="default not bold")
    Console(stderr=True, soft_wrap=True, highlight=False).print(message)
    sys.exit(2)


def run_command(main: Callable[[], None]) -> None:
    """Run a command; a user error exits with status 2 and one message, never a traceback.

    An OSError (no permission, disk full) counts as a user error, as its text names the file; so does too little memory.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # like Ctrl-C: unwind, so that nothing is left half-written
    try:
        main()
    except (UserError, OSError) as err:
        _fail(str(err))
    except (MemoryError, RuntimeError) as err:
        if not is_out_of_memory(err):
            raise
        reason = str(err).splitlines()[0] if str(err) else "an allocation failed"
        _fail(f"out of memory ({reason}); free some memory, raise the limit, or ask for less (smaller batches, fewer "
              "factors, --memory-limit when preparing)")  # fmt: skip
    except KeyboardInterrupt:
        sys.exit(130)
    finally:
        # The process is about to end: skip Python's final garbage collection, which can take a second.
        gc.freeze()
