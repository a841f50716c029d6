"""The service as a process: hostile clients, limits of the system, shutdown, and invalid flags."""

from __future__ import annotations

import http.client
import json
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from model.serve import __main__ as serve
from model.serve import server
from workflows.common.errors import UserError

GOOD = b'{"users": [3], "k": 2}'

pytestmark = pytest.mark.usefixtures("forked")


class Service:
    """A process that serves a run."""

    def __init__(self, run: Path) -> None:
        flags = ["--run", str(run), "--port", "0", "--allowed-hosts", "box.example"]
        command = [sys.executable, "-m", "model.serve", *flags]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.greeting = self.process.stdout.readline().strip()
        self.port = int(self.greeting.rpartition(":")[2])

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=60)

    def listens(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def exchange(self, *parts: bytes) -> int:
        """Send these parts and keep the connection open; returns the response's status, 0 for none."""
        with self.connect() as connection:
            for part in parts:
                connection.sendall(part)
            return _status(connection)

    def post(self, body: bytes) -> int:
        return self.exchange(
            b"POST /recommend HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(body), body
        )

    def stop(self, number: signal.Signals) -> tuple[int, str]:
        """Exit status and stderr after a signal."""
        self.process.send_signal(number)
        errors = self.process.communicate(timeout=60)[1]
        return self.process.returncode, errors


def _status(connection: socket.socket) -> int:
    try:
        response = http.client.HTTPResponse(connection)
        response.begin()
        assert b"Traceback" not in response.read()
    except http.client.BadStatusLine:
        return 0
    return response.status


@pytest.fixture
def service(titled_run: Path) -> Iterator[Service]:
    started = Service(titled_run)
    yield started
    started.process.kill()
    started.process.communicate()


_BODIES = {
    b"": 422,
    b"{": 422,
    b"[]": 422,
    b"null": 422,
    b"[" * 60_000: 422,
    b'{"users": ' + b'{"x":' * 10_000: 422,
    b'{"users": ["\xff\xfe"]}': 422,
    b'\xff\xfe{\x00"\x00': 422,
    b'{"users": ["\\ud800"]}': 422,
    b'{"users": []}': 422,
    b'{"users": [null]}': 422,
    b'{"users": [["3"]]}': 422,
    b'{"users": "3"}': 422,
    b'{"users": [3], "other": 1}': 422,
    json.dumps({"users": ["3"] * 101}).encode(): 422,
    json.dumps({"users": ["3" * 257]}).encode(): 422,
    b'{"users": [3], "k": 0}': 422,
    b'{"users": [3], "k": -1}': 422,
    b'{"users": [3], "k": 1001}': 422,
    b'{"users": [3], "k": 1e400}': 422,
    b'{"users": [3], "k": 9' + b"9" * 5_000 + b"}": 422,
    b'{"users": [3], "k": NaN}': 422,
    b'{"users": [3], "k": 1.5}': 422,
    b'{"users": [3], "k": true}': 422,
    b'{"users": [3], "history": 1000000000}': 422,
    b'{"users": [9' + b"9" * 200 + b"]}": 404,
    b'{"users": [NaN, -Infinity, 1e400, -0.0]}': 404,
    b'{"users": ["", " 3", "3\\u0000", "\\u202e3"]}': 404,
    b'{"users": [3], "k": 1000}': 200,
    GOOD: 200,
}


def test_every_request_gets_its_status_and_the_service_stays_up(service: Service) -> None:
    assert {body: service.post(body) for body in _BODIES} == _BODIES
    head = b"POST /recommend HTTP/1.1\r\nHost: localhost\r\n"
    chunk = b"10000\r\n" + b" " * 0x10000 + b"\r\n"
    large = b" " * 10_000_000
    assert service.post(large) == 413
    assert service.exchange(head, b"Transfer-Encoding: chunked\r\n\r\n", chunk * 150, b"0\r\n\r\n") == 413
    # Rejected before the body is complete: by its announced length, or once too much has arrived.
    assert service.exchange(head, b"Content-Length: 10000000\r\n\r\n") == 413
    assert service.exchange(head, b"Transfer-Encoding: chunked\r\n\r\n", chunk * 2) == 413
    for method, path, status in (
        (b"GET", b"/recommend", 405),
        (b"DELETE", b"/recommend", 405),
        (b"POST", b"/", 405),
        (b"GET", b"/nothing", 404),
        (b"GET", b"/page/../app.py", 404),
        (b"GET", b"/page/%2e%2e/app.py", 404),
        (b"GET", b"/page/..%5capp.py", 404),
        (b"GET", b"/%00", 404),
    ):
        assert service.exchange(method, b" ", path, b" HTTP/1.1\r\nHost: localhost\r\n\r\n") == status, (method, path)
    for host, status in {b"box.example:443": 200, b"127.0.0.1:1": 200, b"evil.example": 421}.items():
        assert service.exchange(b"GET /health HTTP/1.1\r\nHost: ", host, b"\r\n\r\n") == status, host
    assert service.exchange(b"no HTTP\r\n\r\n") == 400
    assert service.exchange(head, b"Content-Length: -1\r\n\r\n") == 400
    with service.connect() as gone:  # disconnects half-way
        gone.sendall(head + b"Content-Length: 100\r\n\r\n{")
    assert service.post(GOOD) == 200
    status, errors = service.stop(signal.SIGINT)
    assert status == 0
    assert "Traceback" not in errors


def test_a_request_in_flight_is_answered_before_shutdown(service: Service, titled_run: Path) -> None:
    assert service.greeting == f"serving {titled_run} at http://127.0.0.1:{service.port}"
    with service.connect() as connection:
        head = b"POST /recommend HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\nContent-Length: %d\r\n\r\n"
        connection.sendall(head % len(GOOD))
        interim = b"HTTP/1.1 100 Continue\r\n\r\n"
        assert connection.recv(len(interim), socket.MSG_WAITALL) == interim  # the server waits for the body
        service.process.send_signal(signal.SIGTERM)
        given_up_s = time.monotonic() + 60
        while service.listens():
            assert time.monotonic() < given_up_s
        connection.sendall(GOOD)
        assert _status(connection) == 200
    assert service.process.wait(60) == 0


N_REQUESTS = (1_000, 50_000)  # in `make test`, in `make soak`
SOAKED_MIB = 10.0


def test_many_requests_leave_nothing_behind(
    service: Service, request: pytest.FixtureRequest, record_property: Callable[[str, object], None]
) -> None:
    process = psutil.Process(service.process.pid)
    head = b"POST /recommend HTTP/1.1\r\nHost: localhost\r\n"

    def send(n_requests: int) -> None:
        """Send requests on one connection, and with each tenth something on a connection of its own."""
        connection = http.client.HTTPConnection("127.0.0.1", service.port, timeout=60)
        connection.connect()
        connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # it sends header and body apart
        for number in range(n_requests):
            connection.request("POST", "/recommend", GOOD)
            response = connection.getresponse()
            assert (response.status, len(response.read()) > 0) == (200, True)
            if number % 60 == 0:
                assert service.post(b" " * 100_000) == 413
            elif number % 60 == 10:
                assert service.exchange(head, b"X: ", b"x" * 100_000) == 431
            elif number % 60 == 20:
                assert service.exchange(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n") == 200
            elif number % 60 == 30:
                assert service.exchange(b"no HTTP\r\n\r\n") == 400
            elif number % 60 == 40:
                assert service.exchange(b"GET /%d HTTP/1.1\r\nHost: evil%d\r\n\r\n" % (number, number)) == 421
            elif number % 60 == 50:
                with service.connect() as gone:
                    gone.sendall(head + b"Content-Length: 100\r\n\r\n{")
        connection.close()

    n_requests = N_REQUESTS[request.config.getoption("--soak")]
    send(n_requests // 5)
    with process.oneshot():
        before_mib, files, threads = process.memory_info().rss / 2**20, process.num_fds(), process.num_threads()
    send(n_requests)
    given_up_s = time.monotonic() + 60
    while process.num_fds() > files:
        assert time.monotonic() < given_up_s, process.num_fds()
    assert process.num_threads() <= threads + 1
    grown_mib = process.memory_info().rss / 2**20 - before_mib
    assert grown_mib < SOAKED_MIB, f"from {before_mib:.0f} MiB"
    record_property("requests with flat memory", n_requests)
    assert service.stop(signal.SIGTERM) == (0, "")


def test_without_free_files_connections_wait_and_one_line_says_so(service: Service) -> None:
    process = psutil.Process(service.process.pid)
    limits = process.rlimit(resource.RLIMIT_NOFILE)
    assert service.post(GOOD) == 200  # it has what it needs by itself
    process.rlimit(resource.RLIMIT_NOFILE, (process.num_fds(), limits[1]))
    assert service.process.stderr is not None
    with service.connect() as first, service.connect() as second:
        assert "Too many open files" in service.process.stderr.readline()
        process.rlimit(resource.RLIMIT_NOFILE, limits)
        for connection in (first, second):
            connection.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert _status(connection) == 200
    assert service.stop(signal.SIGINT) == (0, "")


@pytest.mark.parametrize(("spare", "connections"), [(0, None), (server.SPARE_FILES, None), (100, 31), (10_000, 1024)])
def test_connections_fit_into_the_limit_of_open_files(
    monkeypatch: pytest.MonkeyPatch, spare: int, connections: int | None
) -> None:
    limit = psutil.Process().num_fds() + spare
    monkeypatch.setattr(resource, "getrlimit", lambda which: (limit - spare, limit))
    raised: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "setrlimit", lambda which, limits: raised.append(limits))
    if connections is None:
        with pytest.raises(UserError, match=f"ulimit -n.*{limit}"):
            server.connections_within_open_files(1024)
    else:
        assert server.connections_within_open_files(1024)[0] == connections
        assert raised == [(min(limit, raised[0][0]), limit)]


def test_invalid_flags_are_rejected(titled_run: Path, tmp_path: Path) -> None:
    def error(*flags: str) -> str:
        with pytest.raises(UserError) as caught:
            serve.main(["--run", str(titled_run), "--device", "cpu", *flags])
        return str(caught.value)

    assert "no trained run" in error("--run", str(tmp_path))
    assert "not readable" in error("--titles", str(tmp_path / "titles.csv"))
    assert "--port" in error("--port", "70000")
    assert "--allowed-hosts" in error("--allowed-hosts", "localhost", "http://www.example.org")
    assert "--host" in error("--host", "no.such.host.invalid")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert "in use" in error("--port", str(taken.getsockname()[1]))
