"""Tokens, limits on bodies, CORS, and the headers of the page."""

import base64
import hashlib
import hmac
import re
import socket
import time
from collections.abc import Callable
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="needs the serve extra: pip install 'cfgdiff[serve]' httpx")

from cfgdiff.runtime.server.guard import new_token
from cfgdiff.runtime.server.limits import Limits

URL = "/v1/images/generations"


def guarded(served: list[Any], **settings: Any) -> Any:
    """A client of a server with these settings of `make_app`."""
    from fastapi.testclient import TestClient

    from cfgdiff.runtime.server.http import make_app

    return TestClient(make_app(served, **settings), raise_server_exceptions=False)


def test_a_token_guards_all_but_the_page_and_health(served: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[tuple[bytes, bytes]] = []
    original = hmac.compare_digest
    monkeypatch.setattr(hmac, "compare_digest", lambda a, b: compared.append((a, b)) or original(a, b))
    client = guarded(served, token="secret")
    for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": "Basic secret"}, {"authorization": "ü"}):
        for method, path in (("POST", URL), ("GET", "/v1/models"), ("GET", "/metrics"), ("GET", "/v1/jobs")):
            answer = client.request(method, path, headers={k: v.encode() for k, v in headers.items()})
            assert answer.status_code == 401 and answer.headers["www-authenticate"] == "Bearer"
            assert answer.json()["error"]["code"] == "invalid_api_key"
    assert compared and all(b == b"secret" for _, b in compared)
    right = {"authorization": "Bearer secret"}
    (entry,) = client.post(URL, json={"prompt": "frog", "response_format": "url"}, headers=right).json()["data"]
    for path in ("/", "/healthz", "/readyz", "/openapi.json", entry["url"]):
        assert client.get(path).status_code == 200, path
    assert client.get("/images/../v1/models").status_code == 401


@pytest.mark.parametrize(
    ("text", "token"), [("abc\n", "abc"), ("", None), (" \n", None), ("a b", None), ("ä", None), ("a\nb", None)]
)
def test_a_token_is_one_word(text: str, token: str | None) -> None:
    assert new_token(text) == token


def test_a_large_body_is_413(served: list[Any], scheduler: Any) -> None:
    client = guarded(served, limits=Limits(body=1000))
    assert client.post(URL, json={"prompt": "frog" + " " * 1000}).status_code == 413
    parts = iter([b'{"prompt": "' + b" " * 600, b" " * 600 + b'frog"}'])  # without a length
    answer = client.post(URL, content=parts, headers={"content-type": "application/json"})
    assert answer.status_code == 413 and "at most 1000 bytes" in answer.json()["error"]["message"]
    assert not scheduler.jobs and client.post(URL, json={"prompt": "frog"}).status_code == 200


def test_a_slow_body_is_408(running: Callable[..., str], scheduler: Any) -> None:
    port = int(running(limits=Limits(body_seconds=0.2)).rsplit(":", 1)[1])
    with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
        connection.sendall(f"POST {URL} HTTP/1.1\r\nhost: x\r\ncontent-length: 20\r\n\r\n{{".encode())
        assert b"408" in connection.recv(100).split(b"\r\n")[0]
    assert not scheduler.jobs


def test_other_sites_only_where_they_are_named(served: list[Any]) -> None:
    origin = "https://a.example"
    asked = {
        "origin": origin,
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization",
    }
    client = guarded(served, origins=[origin], token="secret")
    allowed = client.options(URL, headers=asked)
    assert allowed.status_code == 200 and allowed.headers["access-control-allow-origin"] == origin
    other = client.options(URL, headers=asked | {"origin": "https://b.example"})
    assert other.status_code == 400 and "access-control-allow-origin" not in other.headers
    answer = guarded(served).get("/v1/models", headers={"origin": origin})
    assert answer.status_code == 200 and "access-control-allow-origin" not in answer.headers


@pytest.mark.parametrize(
    ("headers", "taken"),
    [
        ({}, True),
        ({"origin": "http://testserver"}, True),
        ({"origin": "https://a.example"}, False),
        ({"origin": "null"}, False),
        ({"origin": "https://public.example", "sec-fetch-site": "same-origin"}, True),  # behind a proxy
        ({"origin": "http://testserver", "sec-fetch-site": "cross-site"}, False),
        ({"sec-fetch-site": "same-site"}, False),
        ({"origin": "https://named.example", "sec-fetch-site": "cross-site"}, True),
    ],
)
def test_pages_of_other_sites_order_nothing(
    served: list[Any], scheduler: Any, headers: dict[str, str], taken: bool
) -> None:
    answer = guarded(served, origins=["https://named.example"]).post(URL, json={"prompt": "frog"}, headers=headers)
    assert answer.status_code == (200 if taken else 403) and len(scheduler.jobs) == taken
    if not taken:
        assert answer.json()["error"]["code"] == "other_site"


@pytest.mark.parametrize(
    ("host", "known"),
    [
        ("localhost", True), ("LOCALHOST:8000", True), ("127.0.0.1:8000", True), ("[::1]:8000", True), ("[::1]", True),
        ("localhost.", True), ("evil.example", False), ("127.0.0.1.evil.example:8000", False), ("", False),
        ("localhost:80@evil.example", False), ("[::1].evil.example", False),
    ],
)  # fmt: skip
def test_a_foreign_name_is_refused(served: list[Any], host: str, known: bool) -> None:
    client = guarded(served, hosts=["localhost", "127.0.0.1", "[::1]"])
    answer = client.get("/v1/models", headers={"host": host})
    assert answer.status_code == (200 if known else 403)
    assert known or "--allow-host" in answer.json()["error"]["message"]
    assert client.get("/healthz", headers={"host": host}).status_code == 200


def test_the_browser_runs_only_the_pages_own_script(served: list[Any]) -> None:
    answer = guarded(served).get("/")
    policy = dict(part.strip().split(" ", 1) for part in answer.headers["content-security-policy"].split(";"))
    for tag in ("script", "style"):
        (inside,) = re.findall(rf"<{tag}>(.*?)</{tag}>", answer.text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(inside.encode()).digest()).decode()
        assert policy[f"{tag}-src"] == f"'sha256-{digest}'"
    assert policy["default-src"] == "'none'" and policy["connect-src"] == "'self'"
    assert answer.headers["x-content-type-options"] == "nosniff"


def test_the_end_of_a_server_does_not_wait_for_idle_clients(running: Callable[..., str]) -> None:
    port, started = int(running().rsplit(":", 1)[1]), time.monotonic()
    with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
        connection.sendall(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n")
        assert b"200" in connection.recv(100).split(b"\r\n")[0]
    assert time.monotonic() - started < 5
