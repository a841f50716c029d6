"""HTTP connections with bounds on what a client may send, on how slowly, and on how many of them there may be."""

from __future__ import annotations

import asyncio
import json
import socket
from typing import Any, NoReturn

import httptools
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

MAX_TARGET, MAX_HEAD = 1 << 13, 1 << 16  # bytes of the request line's URL, and of all headers together
MAX_HEADERS = 100
MAX_PIPELINED = 256  # requests of a connection that wait for the answer to an earlier one
RECEIVE_S = 10.0  # for a whole request
SEND_S = 60.0  # for as much of a response as the system does not take at once
LAST_CALL_S = 1.0  # for requests that are on their way when the service is stopped
_HEAD_TOO_LARGE = f"a request should have at most {MAX_HEADERS} headers, of {MAX_HEAD:,} bytes together"
_PIECE = 1 << 13  # bytes parsed at once: how far an unfinished header may exceed the limit
_LINGER_S = 2.0  # a client that still sends when the connection is closed may lose the response


class BoundedProtocol(HttpToolsProtocol):
    """uvicorn's connection with limits, which its parser in C lacks: what exceeds them ends the connection."""

    def __init__(self, *args: Any, max_connections: int, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._max_connections = max_connections
        self._in_message = self._in_body = False  # where the parser is
        self._head, self._unparsed = 0, 0  # bytes of headers; bytes since the parser last reported anything
        self._problem = (400, "the request is not valid HTTP")
        self._ended = self._stops = False  # nothing more is parsed; the service is stopping
        self._deadline: asyncio.TimerHandle | None = None  # for what the client sends
        self._stuck: asyncio.TimerHandle | None = None  # for what the client takes

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        # A response is sent in two parts, of which the second would wait up to 40 ms for the client to acknowledge the
        # first. asyncio itself does this only if the listener was made with a protocol number.
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        transport.set_write_buffer_limits(0)  # pause_writing() is called whenever something is left to send
        self._expect(RECEIVE_S)
        if len(self.connections) > self._max_connections:
            self._respond(503, "too many open connections; try again")
            transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        for timer in (self._deadline, self._stuck):
            if timer is not None:
                timer.cancel()

    def data_received(self, data: bytes) -> None:
        for start in range(0, len(data), _PIECE):
            if self._ended or self.transport.is_closing():
                return
            piece = data[start : start + _PIECE]
            self._unparsed += len(piece)
            super().data_received(piece)
            # The parser puts a long header together piece by piece, and reports it when it ends.
            if self._unparsed > MAX_HEAD and not self._ended:
                self._end(431, _HEAD_TOO_LARGE)

    def eof_received(self) -> bool:  # type: ignore[override]  # asyncio takes an answer
        """A client that sends nothing more may still wait for its responses."""
        if self._in_message and not self._ended:
            self._end(*self._problem)
        waits = self.cycle is not None and not self.cycle.response_complete and not self._in_body
        if waits:
            self.cycle.keep_alive = False
        return waits or bool(self.pipeline)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_message = True
        self._head = self._unparsed = 0
        self._expect(RECEIVE_S)

    def on_url(self, url: bytes) -> None:
        super().on_url(url)
        self._unparsed = 0
        if len(self.url) > MAX_TARGET:
            self._reject(414, f"the request's URL should have at most {MAX_TARGET:,} bytes")

    def on_header(self, name: bytes, value: bytes) -> None:
        self._unparsed = 0
        if not self._in_body:  # where it is a trailer, which nobody reads
            super().on_header(name, value)
        self._head += len(name) + len(value)
        if self._head > MAX_HEAD or len(self.headers) > MAX_HEADERS:
            self._reject(431, _HEAD_TOO_LARGE)

    def on_headers_complete(self) -> None:
        if len(self.pipeline) >= MAX_PIPELINED:
            self._reject(400, f"at most {MAX_PIPELINED} requests may wait on one connection")
        if not self.url.startswith(b"/"):
            self._split_url()
        super().on_headers_complete()
        self._in_body = True
        if self._stops:
            self.cycle.keep_alive = False

    def _split_url(self) -> None:
        """Of a whole URL in the request line, the host replaces the Host header."""
        url = httptools.parse_url(self.url)  # its error ends the parsing, like those of _reject
        if url.host is None:
            self._reject(400, "the request's URL should be a path that begins with /")
        self.headers[:] = [(name, value) for name, value in self.headers if name != b"host"]
        self.headers.append((b"host", b"[%b]" % url.host if b":" in url.host else url.host))
        self.url = (url.path or b"/") + (b"?" + url.query if url.query else b"")

    def on_body(self, body: bytes) -> None:
        self._unparsed = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        super().on_message_complete()
        self._in_message = self._in_body = False
        if not self.cycle.response_complete:
            self._cancel_deadline()
        elif self._stops:  # the response did not wait for the body
            self.transport.close()
        else:
            self._expect(RECEIVE_S)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self._ended:
            if self._in_body and not self.pipeline:  # all before the refused request are answered
                self.transport.close()
        elif self._in_message or self.cycle.response_complete:  # else a whole request waits
            self._expect(RECEIVE_S)

    def shutdown(self) -> None:
        """Answer what has arrived or is on its way, then close."""
        self._stops = True
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.keep_alive = False
        elif self._ended:
            self.transport.close()
        elif not self._in_message:
            self._expect(LAST_CALL_S)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._stuck = self.loop.call_later(SEND_S, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._stuck is not None:
            self._stuck.cancel()

    def _expect(self, seconds: float) -> None:
        """Give the client this time for the rest of its request, or for the next one."""
        self._cancel_deadline()
        self._deadline = self.loop.call_later(seconds, self._expired)

    def _cancel_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()

    def _expired(self) -> None:
        if self.flow.read_paused:  # the client waits for the service
            self._expect(RECEIVE_S)
        elif self._in_message and not self._ended:
            self._end(408, f"a request should arrive within {RECEIVE_S:.0f} s")
        else:
            self.transport.close()

    def _reject(self, status: int, detail: str) -> NoReturn:
        """From a callback of the parser: end the parsing, upon which uvicorn calls send_400_response."""
        self._problem = status, detail
        raise ValueError(detail)

    def send_400_response(self, msg: str) -> None:
        self._end(*self._problem)

    def _end(self, status: int, detail: str) -> None:
        """Parse no more: refuse the current request, and close the connection when earlier ones are answered."""
        self._ended = True
        cycle = self.cycle
        if self._in_body:  # the application waits for the rest of the body
            cycle.disconnected, cycle.keep_alive = True, False
            cycle.message_event.set()
            if cycle.response_started:
                self.transport.close()
                return
        elif cycle is not None and not cycle.response_complete:
            cycle.keep_alive = False
            self._cancel_deadline()
            return
        self._expect(_LINGER_S)
        if not self.pipeline:
            self._respond(status, detail)
            self.transport.write_eof()

    def _respond(self, status: int, detail: str) -> None:
        body = json.dumps({"detail": detail}).encode()
        headers = [
            *self.server_state.default_headers,
            (b"content-type", b"application/json"),
            (b"content-length", b"%d" % len(body)),
            (b"connection", b"close"),
        ]
        lines = [b"%b: %b\r\n" % header for header in headers]
        self.transport.write(b"".join([STATUS_LINE[status], *lines, b"\r\n", body]))
