"""The one exception that stands for a user's mistake, and how a command line ends on it."""

from __future__ import annotations

import gc
import signal
import sys
from collections.abc import Callable

from rich.console import Console
from rich.text import Text


class UserError(Exception):
    """A mistake the user can mend: says what was expected, what came and what to do."""


def run_command(main: Callable[[], None]) -> None:
    """Run a command line: exit status 2 and one message for a user's mistake, never a traceback.

    An operating system's refusal (no permission, disk full) counts as one: its text names the file.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # as Ctrl-C: leave nothing half-written
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
        # What lives now goes with the process: Python's last search for cycles in it would take up to a second.
        gc.freeze()
