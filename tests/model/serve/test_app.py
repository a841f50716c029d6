"""The service over real connections, against the recommender it serves."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from model.recommend.recommender import Recommender
from model.serve import app
from model.serve.schemas import UserAnswer
from model.serve.service import Asked, Service

TITLES = {f"item-{number}": f"<b>Title</b> & item-{number}" for number in range(11)}  # the last item has none


def item_of(item: object) -> dict[str, Any]:
    return {"item": str(item), "title": TITLES.get(str(item))}


def expected(recommender: Recommender, user: str, k: int, history: int) -> dict[str, Any]:
    ranking = recommender.recommend([user], k)[0]
    pairs = zip(ranking.items, ranking.scores, strict=True)
    items = [{**item_of(item), "score": pytest.approx(score)} for item, score in pairs]
    latest = list(reversed(recommender.history(user)))[:history]
    return {"basis": "model", "items": items, "history": [item_of(item) for item in latest]}


def metrics(client: Callable[..., Any]) -> dict[tuple[str, ...], float]:
    """Metric values by name and labels."""
    families = text_string_to_metric_families(client("GET", "/metrics").body.decode())
    return {(one.name, *one.labels.values()): one.value for family in families for one in family.samples}


@pytest.mark.parametrize(("k", "history"), [(3, 2), (10, 0), (1000, 1000)])
def test_answers_match_the_recommender_with_titles(
    start: Callable[..., Any], answers: Service, recommender: Recommender, k: int, history: int
) -> None:
    client = start(answers)
    users = ["55", 1007, "20", "55"]  # ids as text and as numbers, with duplicates
    response = client("POST", "/recommend", {"users": users, "k": k, "history": history})
    assert response.status == 200
    assert response.json == {"users": [expected(recommender, str(user), k, history) for user in users]}


def test_concurrent_requests_with_different_options_are_answered_correctly(
    start: Callable[..., Any], answers: Service, recommender: Recommender
) -> None:
    client = start(answers)
    asked = [(user, k, k % 3) for user in ("3", "20", "55", "1007") for k in (1, 2, 5, 12)] * 3

    def ask(one: tuple[str, int, int]) -> Any:
        user, k, history = one
        return client("POST", "/recommend", {"users": [user], "k": k, "history": history}).json

    with ThreadPoolExecutor(16) as pool:
        for one, answer in zip(asked, pool.map(ask, asked), strict=True):
            assert answer == {"users": [expected(recommender, *one)]}


def test_unknown_users_are_rejected_by_index(start: Callable[..., Any], answers: Service) -> None:
    response = start(answers)("POST", "/recommend", {"users": ["3", "Nobody", "55", "<b>"]})
    assert (response.status, response.json) == (404, {"detail": "unknown users, by index in users: 1, 3"})


def test_unknown_users_get_items_marked_as_popular(
    start: Callable[..., Any], answers: Service, recommender: Recommender
) -> None:
    client = start(answers, refuses_unknown=False)
    users = client("POST", "/recommend", {"users": ["nobody", "3"], "k": 4, "history": 3}).json["users"]
    popular = recommender.recommend(["nobody"], 4, unknown_users="popular")[0]
    assert [item["item"] for item in users[0]["items"]] == popular.items
    assert (users[0]["basis"], users[0]["history"]) == ("popularity", [])
    assert users[1] == expected(recommender, "3", 4, 3)


class Blocked:
    """Blocks all answers until released."""

    def __init__(self) -> None:
        self.began, self.let_go = threading.Event(), threading.Event()

    def __call__(self, batch: Sequence[Asked]) -> list[UserAnswer]:
        self.began.set()
        assert self.let_go.wait(60)
        return [UserAnswer(basis="model", items=[], history=[]) for _ in batch]


def test_requests_beyond_the_queue_get_503_and_the_rest_are_answered(
    start: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app, "MAX_WAITING", 3)
    blocked = Blocked()
    client = start(blocked)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(client, "POST", "/recommend", {"users": ["1"]})
        assert blocked.began.wait(60)
        second = pool.submit(client, "POST", "/recommend", {"users": ["1", "2"]})
        given_up_s = time.monotonic() + 60
        while metrics(client)["neumf_waiting_users",] < 2:
            assert time.monotonic() < given_up_s
        third = client("POST", "/recommend", {"users": ["1", "2"]})
        blocked.let_go.set()
        assert (third.status, third.headers["Retry-After"]) == (503, "1")
        assert [len(one.result().json["users"]) for one in (first, second)] == [1, 2]
    seen = metrics(client)
    assert seen["neumf_requests_total", "/recommend", "200"] == 2
    assert seen["neumf_requests_total", "/recommend", "503"] == 1
    assert (seen["neumf_batch_users_count",], seen["neumf_batch_users_sum",]) == (2, 3)
    assert seen["neumf_request_seconds_count", "/recommend"] == 3


def test_every_response_has_security_headers_and_no_traceback(start: Callable[..., Any]) -> None:
    def broken(batch: Sequence[Asked]) -> list[UserAnswer]:
        raise RuntimeError("secret")

    client = start(broken)
    responses = {
        500: client("POST", "/recommend", {"users": ["1"]}),
        422: client("POST", "/recommend", b"<script>"),
        413: client("POST", "/recommend", b" " * (app.MAX_BODY_BYTES + 1)),
        405: client("GET", "/recommend"),
        404: client("GET", "/<script>"),
        200: client("GET", "/"),
    }
    for status, response in responses.items():
        assert response.status == status
        assert response.headers["X-Content-Type-Options"] == "nosniff"
        assert "default-src 'self'" in response.headers["Content-Security-Policy"]
        assert response.headers["Server"] is None
        if status != 200:
            assert list(response.json) == ["detail"]
            assert not re.search(rb"secret|script|Traceback", response.body)


def test_the_pages_load_no_external_resources(start: Callable[..., Any], answers: Service) -> None:
    client = start(answers)
    for page in ("/", "/docs"):
        links = re.findall(r'(?:src|href)="([^"]+)"', client("GET", page).body.decode())
        assert links
        for link in links:
            assert not link.startswith(("http", "//")), page
            assert client("GET", f"/{link.lstrip('/')}").status == 200, link


def test_the_openapi_description_matches_the_service(start: Callable[..., Any], answers: Service) -> None:
    client = start(answers)
    described = client("GET", "/openapi.json").json
    assert list(described["paths"]) == ["/recommend", "/health", "/metrics"]
    recommend = described["paths"]["/recommend"]["post"]
    assert {"200", "404", "413", "422", "503"} == set(recommend["responses"])
    body = recommend["requestBody"]["content"]["application/json"]["schema"]
    assert (list(body["properties"]), body["required"]) == (["users", "k", "history"], ["users"])
    health = client("GET", "/health").json
    assert health == {
        "status": "ok",
        "n_users": 4,
        "n_items": 12,
        "examples": ["1007", "3", "55"],
        "scores": "probability",
    }


_ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["users", "k", "x"]) | st.text(), inner)
    ),
    max_leaves=8,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=200) | st.builds(lambda value: json.dumps(value).encode(), _ANYTHING))
def test_no_body_causes_a_server_error(shared_client: Callable[..., Any], body: bytes) -> None:
    assert shared_client("POST", "/recommend", body).status in (200, 404, 422)


@pytest.fixture
def shared_client(start: Callable[..., Any], answers: Service) -> Callable[..., Any]:
    return start(answers)
