"""Connections of clients that send too much, too slowly, or something other than HTTP."""

from __future__ import annotations

import re
import socket
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from model.serve import protocol
from model.serve.protocol import MAX_HEAD, MAX_HEADERS, MAX_PIPELINED, MAX_TARGET
from model.serve.schemas import Health, UserAnswer
from model.serve.service import Asked

HOST = b"Host: localhost\r\n"
GET = b"GET /health HTTP/1.1\r\n" + HOST
GOOD = GET + b"\r\n"
POST = b"POST /recommend HTTP/1.1\r\n" + HOST
BODY = b'{"users": [3]}'
SENT = b"Content-Length: %d\r\n\r\n%b" % (len(BODY), BODY)
CHUNKED = b"Transfer-Encoding: chunked\r\n\r\n"
CHUNK = b"%x\r\n%b\r\n" % (len(BODY), BODY)
LARGE = b"x" * 5_000_000


class Answers:
    """Answers at once; with a `gate`, when it is open."""

    def __init__(self, gate: threading.Event | None = None) -> None:
        self.gate, self.began = gate, threading.Event()

    def __call__(self, batch: Sequence[Asked]) -> list[UserAnswer]:
        self.began.set()
        assert self.gate is None or self.gate.wait(60)
        return [UserAnswer(basis="model", items=[], history=[]) for _ in batch]

    def health(self) -> Health:
        return Health(status="ok", n_users=1, n_items=1, examples=[], scores="probability")


def connect(client: Any) -> socket.socket:
    return socket.create_connection(("127.0.0.1", client.port), timeout=60)


def rest(connection: socket.socket) -> bytes:
    received = bytearray()
    while part := connection.recv(1 << 16):
        received += part
    return bytes(received)


def statuses(answer: bytes) -> list[int]:
    assert b"Traceback" not in answer
    return [int(status) for status in re.findall(rb"HTTP/1\.1 (\d{3}) ", answer)]


def exchange(client: Any, sent: bytes) -> list[int]:
    """Statuses of the responses to a client that sends this and nothing more."""
    with connect(client) as connection:
        connection.sendall(sent)
        connection.shutdown(socket.SHUT_WR)
        return statuses(rest(connection))


REQUESTS = {
    GOOD: 200,
    POST + SENT: 200,
    POST + CHUNKED + CHUNK + b"0\r\n\r\n": 200,
    GET.replace(b"1.1", b"1.0") + b"\r\n": 200,
    GET + b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\r\n": 200,
    # What the parser refuses.
    b"GET /health HTTP/3.7\r\n" + HOST + b"\r\n": 400,
    b"BREW /health HTTP/1.1\r\n" + HOST + b"\r\n": 400,
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\0" * 99: 400,
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n": 400,
    b"GET /\xff HTTP/1.1\r\n" + HOST + b"\r\n": 400,
    b"GET /a b HTTP/1.1\r\n" + HOST + b"\r\n": 400,
    GET + b"X: a\r\n folded\r\n\r\n": 400,
    GET + b"X: a\0b\r\n\r\n": 400,
    POST + b"Content-Length: 3\r\n" + SENT: 400,
    POST + b"Content-Length: 99999999999999999999999\r\n\r\n": 400,
    POST + b"Content-Length: 14\r\n" + CHUNKED + CHUNK + b"0\r\n\r\n": 400,
    POST + CHUNKED + b"zz\r\n": 400,
    POST + CHUNKED + b"-5\r\n" + BODY: 400,
    POST + CHUNKED + b"2\r\n" + BODY: 400,
    POST + CHUNKED + b"ffffffffffffffffff\r\n": 400,
    POST + b"Transfer-Encoding: gzip\r\n\r\n" + BODY: 400,
    # What is not for a path of this service.
    b"TRACE /health HTTP/1.1\r\n" + HOST + b"\r\n": 405,
    b"CONNECT localhost:80 HTTP/1.1\r\n" + HOST + b"\r\n": 400,
    b"OPTIONS * HTTP/1.1\r\n" + HOST + b"\r\n": 400,
    b"GET http://localhost:1/health?x HTTP/1.1\r\nHost: evil.example\r\n\r\n": 200,
    b"GET http://[::1] HTTP/1.1\r\n\r\n": 200,
    b"GET http://evil.example/health HTTP/1.1\r\n" + HOST + b"\r\n": 421,
    b"GET //evil.example/health HTTP/1.1\r\n" + HOST + b"\r\n": 404,
    b"GET /health HTTP/1.1\r\n\r\n": 400,
    b"GET /health HTTP/1.1\r\n" + HOST * 2 + b"\r\n": 400,
    b"GET /health HTTP/1.1\r\nHost: evil.example\r\n\r\n": 421,
    b"GET /metrics HTTP/1.1\r\nHost: evil.example\r\n\r\n": 421,
    # What is too large, even where it does not end.
    GET + b"X: " + b"x" * (MAX_HEAD + 20_000): 431,
    GET + b"X: " + b"x" * (MAX_HEAD - 99) + b"\r\n\r\n": 200,
    GET + b"X: " + b"x" * MAX_HEAD + b"\r\n\r\n": 431,
    GET + b"X: " + LARGE: 431,
    GET + LARGE: 431,
    GET + b"X: x\r\n" * (MAX_HEADERS - 1) + b"\r\n": 200,
    GET + b"X: x\r\n" * MAX_HEADERS + b"\r\n": 431,
    b"GET /" + b"x" * (MAX_TARGET - 1) + b" HTTP/1.1\r\n" + HOST + b"\r\n": 404,
    b"GET /" + b"x" * MAX_TARGET + b" HTTP/1.1\r\n" + HOST + b"\r\n": 414,
    b"GET /" + LARGE: 414,
    b"\r\n" * len(LARGE): 431,
    POST + CHUNKED + b"5;" + LARGE: 431,
    POST + CHUNKED + CHUNK + b"0\r\nX: " + LARGE: 431,
    # A trailer is no header.
    POST + CHUNKED + CHUNK + b"0\r\nHost: evil.example\r\n\r\n": 200,
}


def test_every_request_gets_one_status(start: Callable[..., Any], capfd: pytest.CaptureFixture[str]) -> None:
    client = start(Answers())
    assert {sent[:200]: exchange(client, sent) for sent in REQUESTS} == {
        sent[:200]: [status] for sent, status in REQUESTS.items()
    }
    assert capfd.readouterr().err == ""


def test_pipelined_requests_are_answered_up_to_the_first_bad_one(start: Callable[..., Any]) -> None:
    client = start(Answers())
    assert exchange(client, GOOD * 20 + POST + SENT) == [200] * 21
    assert exchange(client, GOOD * 3 + b"no HTTP\r\n\r\n" + GOOD) == [200] * 3
    assert exchange(client, (POST + SENT) * 3 + POST + CHUNKED + b"zz") == [200] * 3
    assert exchange(client, GOOD * (MAX_PIPELINED + 99)) == [200] * (MAX_PIPELINED + 1)


def test_slow_requests_are_given_up(start: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "RECEIVE_S", 0.05)
    client = start(Answers())
    sent_and_answered = {b"": [], b"\r\n": [], b"GET /hea": [408], POST + SENT[:-1]: [408], GOOD + b"G": [200, 408]}
    for sent, expected in sent_and_answered.items():
        with connect(client) as connection:
            connection.sendall(sent)
            assert statuses(rest(connection)) == expected


def until(condition: Callable[[], bool]) -> None:
    given_up_s = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < given_up_s


def listens(client: Any) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", client.port)) == 0


def test_a_request_is_not_slow_while_it_waits_for_its_answer(
    start: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protocol, "RECEIVE_S", 0.05)
    gate = threading.Event()
    answers = Answers(gate)
    client = start(answers)
    with connect(client) as connection:
        connection.sendall((POST + SENT) * 3)
        assert answers.began.wait(60)
        with connect(client) as idle:
            assert rest(idle) == b""  # the time is up
        gate.set()
        assert statuses(rest(connection)) == [200, 200, 200]


def test_a_client_that_takes_no_response_is_disconnected(
    start: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protocol, "SEND_S", 0.05)
    client = start(lambda batch: [UserAnswer(basis="x" * 20_000_000, items=[], history=[])], refuses_unknown=False)
    with connect(client) as connection:
        connection.sendall(POST + SENT)
        assert connection.recv(12) == b"HTTP/1.1 200"
        until(lambda: not client.server.server_state.connections)


def test_connections_beyond_the_limit_are_refused_until_others_end(start: Callable[..., Any]) -> None:
    client = start(Answers(), max_connections=2)
    with connect(client) as first, connect(client) as second:
        for connection in (first, second):
            connection.sendall(GOOD)
            assert connection.recv(12) == b"HTTP/1.1 200"
        with connect(client) as third:
            assert statuses(rest(third)) == [503]
    until(lambda: exchange(client, GOOD) == [200])


def test_open_connections_are_answered_before_the_service_stops(
    start: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protocol, "LAST_CALL_S", 60)
    gate = threading.Event()
    answers = Answers(gate)
    client = start(answers)
    with connect(client) as kept, connect(client) as new, connect(client) as half, connect(client) as waiting:
        kept.sendall(GOOD)
        assert kept.recv(12) == b"HTTP/1.1 200"
        half.sendall(POST + SENT[:-1])
        waiting.sendall(POST + SENT)
        assert answers.began.wait(60)
        until(lambda: len(client.server.server_state.connections) == 4)
        client.server.should_exit = True
        until(lambda: not listens(client))
        kept.sendall(GOOD)
        new.sendall(GOOD)
        half.sendall(SENT[-1:])
        gate.set()
        for connection in (kept, new, half, waiting):
            answer = rest(connection)
            assert answer.count(b"connection: close") == 1
            assert statuses(answer)[-1] == 200


def test_idle_connections_end_when_the_service_stops(
    start: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protocol, "LAST_CALL_S", 0.05)
    client = start(Answers())
    with connect(client) as connection:
        until(lambda: bool(client.server.server_state.connections))
        client.server.should_exit = True
        assert rest(connection) == b""
