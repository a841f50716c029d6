"""The single exception for user errors, and how a command exits on it."""

from __future__ import annotations

import gc
import signal
import sys
from collections.abc import Callable

from rich.console import Console
from rich.text import Text


class UserError(Exception):
    """An error the user can fix; the message says what was expected, what was found and what to do."""


def run_command(main: Callable[[], None]) -> None:
    """Run a command; a user error exits with status 2 and one message, never a traceback.

    An OSError (no permission, disk full) counts as a user error: its text names the file.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # like Ctrl-C: unwind, so that nothing is left half-written
    try:
        main()
    except (UserError, OSError) as err:
        sys.stdout.flush()
        message = Text("error: ", style="bold red").append(str(err), style="default not bold")
        Console(stderr=True, soft_wrap=True, highlight=False).print(message)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
    finally:
        # The process is about to end: skip Python's final garbage collection, which can take a second.
        gc.freeze()
