"""Middleware for every response: allowed hosts, security headers, request counts and latencies."""

from __future__ import annotations

import time

from prometheus_client import CollectorRegistry, Counter, Histogram
from starlette.datastructures import MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from model.serve.hosts import AllowedHosts

_HEADERS = {
    "Cache-Control": "no-store",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
_POLICY = "default-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'; object-src 'none'"
# FastAPI's Swagger UI page uses an inline script, and data: URLs for images.
_DOCS_POLICY = f"{_POLICY}; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'; img-src 'self' data:"
# Errors never echo client input.
_REFUSED = {
    400: "a request should have one valid Host header",
    421: "this service does not answer to the Host of the request; --allowed-hosts NAME makes it do so",
}
_COUNTED = ("/recommend", "/health", "/metrics")  # all others share one label, since clients choose the paths


class Middleware:
    """ASGI middleware."""

    def __init__(self, app: ASGIApp, registry: CollectorRegistry, hosts: AllowedHosts) -> None:
        self._app, self._hosts = app, hosts
        self._requests = Counter(
            "neumf_requests", "Responses by path and status", ["path", "status"], registry=registry
        )
        self._seconds = Histogram(
            "neumf_request_seconds", "Time from request to end of response", ["path"], registry=registry
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path, started, status = scope["path"], time.perf_counter(), 0

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers.update(_HEADERS)
                headers["Content-Security-Policy"] = _DOCS_POLICY if path == "/docs" else _POLICY
            await send(message)

        refused = self._hosts.refusal(scope["headers"])
        app = JSONResponse({"detail": _REFUSED[refused]}, refused) if refused else self._app
        try:
            await app(scope, receive, send_with_headers)
        finally:
            label = path if path in _COUNTED else "other"
            self._requests.labels(label, str(status)).inc()
            self._seconds.labels(label).observe(time.perf_counter() - started)
