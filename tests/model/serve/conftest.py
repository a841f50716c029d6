"""A service in a thread of the test, on a free port."""

from __future__ import annotations

import http.client
import json
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from model.recommend.recommender import Recommender
from model.serve.app import create_app
from model.serve.hosts import AllowedHosts
from model.serve.server import Server
from model.serve.service import Service
from preprocessing.spec.titles import read_titles

LOOPBACK = AllowedHosts("127.0.0.1")


@dataclass(frozen=True)
class Response:
    status: int
    headers: http.client.HTTPMessage
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass(frozen=True)
class Client:
    port: int
    server: Server

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def __call__(self, method: str, path: str, body: Any = None) -> Response:
        """Send one request on a new connection; a body other than bytes is sent as JSON."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        connection.request(method, path, data)
        response = connection.getresponse()
        result = Response(response.status, response.headers, response.read())
        connection.close()
        return result


@pytest.fixture
def start() -> Iterator[Callable[..., Client]]:
    """`start(answers, refuses_unknown=True)` returns a client of a service with those answers."""
    running = []

    def serve(answers: Any, refuses_unknown: bool = True, hosts: AllowedHosts = LOOPBACK, **limits: int) -> Client:
        server = Server(create_app(answers, refuses_unknown, hosts), **limits)
        listener = socket.create_server(("127.0.0.1", 0))
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        running.append((server, thread))
        return Client(listener.getsockname()[1], server)

    yield serve
    for server, thread in running:
        server.should_exit = True
        thread.join(60)
        assert not thread.is_alive()


@pytest.fixture
def recommender(titled_run: Path) -> Recommender:
    return Recommender.load(titled_run, device="cpu", in_memory=True)


@pytest.fixture
def answers(titled_run: Path, recommender: Recommender) -> Service:
    return Service(recommender, read_titles(titled_run.parent / "prepared" / "titles.parquet"))
