"""The server: uvicorn with bounded connections, which keeps going at the system's limit of open files."""

from __future__ import annotations

import asyncio
import errno
import resource
import socket
import sys
import time
from functools import partial
from typing import Any

import psutil
import uvicorn
from starlette.types import ASGIApp

from model.serve.protocol import BoundedProtocol
from workflows.common.errors import UserError

MAX_CONNECTIONS = 1024
STOP_S = 30  # for requests in flight when the service is stopped
_BACKLOG = 256  # new connections that the system holds, and that may be taken at once
SPARE_FILES = 16  # for everything but connections
_QUIET_S = 60.0
_OUT_OF = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}


class Server(uvicorn.Server):
    """uvicorn with limits.

    Raises:
        UserError: the system's limit of open files leaves no room for connections.
    """

    def __init__(self, app: ASGIApp, max_connections: int = MAX_CONNECTIONS) -> None:
        connections, backlog = connections_within_open_files(max_connections)
        super().__init__(
            uvicorn.Config(
                app,
                http=partial(BoundedProtocol, max_connections=connections),  # type: ignore[arg-type]
                ws="none",
                access_log=False,  # requests are private
                log_level="error",  # warnings are about clients' mistakes, which get a response
                server_header=False,
                backlog=backlog,
                timeout_graceful_shutdown=STOP_S,
            )
        )
        self._warned_s = -_QUIET_S

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        asyncio.get_running_loop().set_exception_handler(self._handle)
        await super().startup(sockets)

    def _handle(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """asyncio prints a traceback for each connection that the system has no room for, and tries again."""
        err = context.get("exception")
        if not isinstance(err, OSError) or err.errno not in _OUT_OF:
            loop.default_exception_handler(context)
            return
        now_s = time.monotonic()
        if now_s - self._warned_s >= _QUIET_S:
            print(f"no new connections for now: {err.strerror}", file=sys.stderr, flush=True)
        self._warned_s = now_s


def connections_within_open_files(wanted: int) -> tuple[int, int]:
    """How many connections there may be, and how many may be taken at once, within the limit of open files.

    The limit is raised if the system allows it. A connection may have a file of the web page open.

    Raises:
        UserError: the limit leaves no room for connections.
    """
    used = psutil.Process().num_fds()
    needed = used + SPARE_FILES + _BACKLOG + 2 * wanted
    limit, most = (
        sys.maxsize if n == resource.RLIM_INFINITY else n for n in resource.getrlimit(resource.RLIMIT_NOFILE)
    )
    if limit < needed:
        limit = max(limit, min(needed, most))
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, most))
    free = limit - used - SPARE_FILES
    backlog = min(_BACKLOG, free // 4)
    if backlog < 1:
        raise UserError(
            f"the service needs more open files than `ulimit -n` allows, {limit}: at least {limit - free + 4}"
        )
    return min(wanted, (free - backlog) // 2), backlog
