"""The load of the serving benchmark, against a server that records its requests."""

from __future__ import annotations

import json
import shutil
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from benchmark import serve

USERS = ["7", 'a "quote"', "back\\slash", "ü\n\u2028]]"]


@pytest.mark.skipif(shutil.which("wrk") is None, reason="wrk is not installed (Debian: apt-get install wrk)")
@pytest.mark.parametrize("status", [200, 503])
def test_all_users_are_requested_and_failures_counted(status: int) -> None:
    asked: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            asked.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever).start()
        result = serve._load(f"http://127.0.0.1:{server.server_port}", USERS, k=3, clients=4, seconds=1)
        server.shutdown()
    assert {one["users"][0] for one in asked} == set(USERS)
    assert {one["k"] for one in asked} == {3}
    assert 0 < result["requests"] <= len(asked)
    assert result["failed"] == (result["requests"] if status == 503 else 0)
    assert 0 < result["p50_ms"] <= result["p99_ms"] <= result["max_ms"]
