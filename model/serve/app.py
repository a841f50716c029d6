"""The service's routes: recommendations, health, metrics, the web page and the OpenAPI description."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.responses import FileResponse, JSONResponse
from fastapi.staticfiles import StaticFiles
from fastapi_offline import FastAPIOffline
from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)
from pydantic import ValidationError
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp

from model.serve.batching import Batcher, QueueFullError
from model.serve.hosts import AllowedHosts
from model.serve.middleware import Middleware
from model.serve.schemas import Answer, Failure, Health, Query, UserAnswer
from model.serve.service import Asked, Service

MAX_BODY_BYTES = 1 << 16
MAX_BATCH, MAX_WAITING = 256, 2048  # users
_PAGE = Path(__file__).parent / "page"
_SHOWN_ERRORS = 3


def create_app(answers: Service, refuses_unknown: bool, hosts: AllowedHosts) -> ASGIApp:
    """The service of a run as an ASGI application.

    Args:
        refuses_unknown: users the run was not trained on get status 404 instead of popular items.
        hosts: what a request may call the service.
    """
    registry = CollectorRegistry()
    batcher = _batcher(answers, registry)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        worker = asyncio.create_task(batcher.run())
        yield
        worker.cancel()
        with suppress(asyncio.CancelledError):
            await worker

    app = FastAPIOffline(redoc_url=None, title="NeuMF recommendations", lifespan=lifespan)
    _add_recommend(app, batcher, refuses_unknown)

    @app.get("/health")
    async def health() -> Health:
        """Status of the service, and numbers of users and items."""
        return answers.health()

    @app.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
    async def metrics() -> Response:
        """Counters and timings in Prometheus format."""
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)

    @app.exception_handler(Exception)
    async def failed(request: Request, err: Exception) -> Response:
        return JSONResponse({"detail": "internal error; see the service's log"}, 500)

    @app.exception_handler(ClientDisconnect)
    async def gone(request: Request, err: Exception) -> Response:
        return Response(status_code=400)  # the client is gone

    @app.get("/", include_in_schema=False)
    async def page() -> FileResponse:
        return FileResponse(_PAGE / "index.html")

    app.mount("/page", StaticFiles(directory=_PAGE))
    return Middleware(app, registry, hosts)


def _batcher(answers: Service, registry: CollectorRegistry) -> Batcher[Asked, UserAnswer]:
    """A batcher that reports to the metrics."""
    ProcessCollector(registry=registry)
    buckets = [1 << power for power in range(MAX_BATCH.bit_length())]
    sizes = Histogram("neumf_batch_users", "Users per scoring call", registry=registry, buckets=buckets)
    waiting = Gauge("neumf_waiting_users", "Users waiting for a scoring call", registry=registry)

    def answer(batch: list[Asked]) -> list[UserAnswer]:
        sizes.observe(len(batch))
        return answers(batch)

    batcher = Batcher(answer, MAX_BATCH, MAX_WAITING)
    waiting.set_function(lambda: batcher.n_waiting)
    return batcher


def _add_recommend(app: FastAPI, batcher: Batcher[Asked, UserAnswer], refuses_unknown: bool) -> None:
    body = {"required": True, "content": {"application/json": {"schema": Query.model_json_schema()}}}
    failures: dict[int | str, dict[str, Any]] = {status: {"model": Failure} for status in (404, 413, 422, 503)}

    @app.post("/recommend", response_model=Answer, responses=failures, openapi_extra={"requestBody": body})
    async def recommend(request: Request) -> Response:
        """Rank for each user the items they have not interacted with, best first."""
        query = _parsed(await _bounded_body(request))
        try:
            users = await batcher.ask([Asked(user, query.k, query.history) for user in query.users])
        except QueueFullError:
            raise HTTPException(503, "too many waiting requests; try again", {"Retry-After": "1"}) from None
        unknown = [str(place) for place, user in enumerate(users) if user.basis != "model"]
        if unknown and refuses_unknown:
            raise HTTPException(404, f"unknown users, by index in users: {', '.join(unknown)}")
        return Response(Answer(users=users).model_dump_json(), media_type="application/json")


async def _bounded_body(request: Request) -> bytes:
    """The body of a request; reading stops as soon as it is too large.

    Starlette's middleware would reject some with plain text, and clients expect JSON.
    """
    body = bytearray()
    if int(request.headers.get("Content-Length", 0)) <= MAX_BODY_BYTES:
        async for chunk in request.stream():
            body += chunk
            if len(body) > MAX_BODY_BYTES:
                break
        else:
            return bytes(body)
    raise HTTPException(413, f"the body should have at most {MAX_BODY_BYTES:,} bytes")


def _parsed(body: bytes) -> Query:
    """Parse a query; errors never echo client input, not even unknown field names."""
    try:
        return Query.model_validate_json(body)
    except ValidationError as err:
        problems = []
        for error in err.errors(include_url=False, include_context=False, include_input=False)[:_SHOWN_ERRORS]:
            place = [str(part) for part in error["loc"] if isinstance(part, int) or part in Query.model_fields]
            problems.append(f"{'.'.join(place) or 'body'}: {error['msg']}")
        raise HTTPException(422, "; ".join(problems)) from None
