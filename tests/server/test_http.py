"""The HTTP interface around a stand-in scheduler: every endpoint and every error."""

import base64
import io
import json
import re
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("fastapi", reason="needs the serve extra: pip install 'cfgdiff[serve]' httpx")

from cfgdiff.runtime import Bundle

URL = "/v1/images/generations"


def pixels(png: bytes) -> np.ndarray:
    """(H, W, C) uint8."""
    return np.asarray(Image.open(io.BytesIO(png)))


def test_pictures_come_in_openais_form_with_their_note_inside(client: Any, scheduler: Any) -> None:
    answer = client.post(URL, json={"prompt": "2 frogs, 1 ship", "seed": 7, "steps": 2, "guidance": 1.5})
    assert answer.status_code == 200
    tree = answer.json()
    assert abs(tree["created"] - time.time()) < 60 and len(tree["data"]) == 3
    for i, entry in enumerate(tree["data"]):
        png = base64.b64decode(entry["b64_json"])
        note = json.loads(Image.open(io.BytesIO(png)).text["cfgdiff"])  # type: ignore[attr-defined]
        assert note == entry["note"] and note["class"] == ("ship" if i == 2 else "frog")
        assert (note["seed"], note["index"], note["steps"], note["guidance"]) == (7, i, 2, 1.5)
        assert note["engine"] == "cpu" and note["model"] == "cifar10-turbo"
        assert pixels(png)[0, 0].tolist() == [8 if i == 2 else 6, 7, i]
    settings = scheduler.jobs[0].settings
    assert settings["priority"] == 0 and 0 < settings["deadline"] - time.monotonic() <= 120 and not settings["watch"]


def test_a_class_and_seeds_in_place_of_a_prompt(client: Any, scheduler: Any) -> None:
    answer = client.post(URL, json={"class": ["Frog", "ship"], "n": 3, "seed": [5, 6, 7], "size": "32x32"})
    notes = [entry["note"] for entry in answer.json()["data"]]
    assert [note["class"] for note in notes] == ["frog", "ship", "frog"]
    assert [(note["seed"], note["index"]) for note in notes] == [(5, 0), (6, 0), (7, 0)]


def test_without_a_seed_pictures_are_new_and_their_notes_say_the_seed(client: Any) -> None:
    seeds = {client.post(URL, json={"class": "frog"}).json()["data"][0]["note"]["seed"] for _ in range(3)}
    assert len(seeds) == 3 and max(seeds) < 2**53


def test_another_model_and_an_interpolation(client: Any) -> None:
    to = {"class": "ship", "seed": 9, "share": [0, 0.5, 1]}
    body = {
        "model": "cifar10-small",
        "class": "frog",
        "n": 3,
        "seed": [4, 4, 4],
        "steps": 6,
        "sampler": "unipc",
        "to": to,
    }
    notes = [entry["note"] for entry in client.post(URL, json=body).json()["data"]]
    assert [note["to"] for note in notes] == [{"class": "ship", "seed": 9, "share": share} for share in (0, 0.5, 1)]
    assert {note["sampler"] for note in notes} == {"unipc"} and {note["model"] for note in notes} == {"cifar10-small"}


def test_urls_hold_the_pictures_for_a_while(client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    (entry,) = client.post(URL, json={"prompt": "frog", "response_format": "url", "seed": 3}).json()["data"]
    assert "b64_json" not in entry and re.fullmatch(r"http://testserver/images/[\w-]{22}\.png", entry["url"])
    answer = client.get(entry["url"])
    assert answer.headers["content-type"] == "image/png" and pixels(answer.content)[0, 0].tolist() == [6, 3, 0]
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + 3601)
    assert client.get(entry["url"]).status_code == 404


@pytest.mark.parametrize(
    ("body", "field", "message"),
    [
        ({"prompt": "forg"}, "prompt", "did you mean 'frog'"),
        ({"class": "forg"}, "class", "class: no class 'forg'"),
        ({"prompt": ""}, "prompt", "expected a class"),
        ({"prompt": "frog", "class": "ship"}, "prompt", "found both"),
        ({"class": []}, "class", "found none"),
        ({"prompt": "frog", "n": 0}, "n", "greater than or equal to 1, found 0"),
        ({"prompt": "frog", "n": 257}, "n", "at most 256"),
        ({"class": "frog", "n": 257}, "n", "POST /v1/jobs"),
        ({"prompt": "frog", "n": "3"}, "n", "found '3'"),
        ({"prompt": "frog", "size": "1024x1024"}, "size", "draws 32x32, found '1024x1024'"),
        ({"prompt": "frog", "steps": 5}, "steps", "was trained for its own steps"),
        ({"prompt": "frog", "steps": 10**30}, "steps", ""),
        ({"prompt": "frog", "seed": -1}, "seed", "greater than or equal to 0"),
        ({"prompt": "frog", "seed": 2**64}, "seed", "less than"),
        ({"prompt": "frog", "n": 2, "seed": [1]}, "seed", ""),
        ({"prompt": "frog", "guidance": 99}, "guidance", "was trained for"),
        ({"prompt": "frog", "sampler": "ddmp"}, "sampler", ""),
        ({"prompt": "frog", "to": {"seed": 1, "share": 2}}, "to.share", "0 .. 1"),
        ({"prompt": "frog", "to": {"seed": 1, "share": [1, 1]}}, "to", "expected 1 shares"),
        ({"prompt": "frog", "response_format": "png"}, "response_format", "b64_json"),
        ({"prompt": "frog", "partial_images": 2}, "partial_images", "for streams"),
        ({"prompt": "frog", "stream": True, "response_format": "url"}, "response_format", "a stream"),
        ({"prompt": "frog", "to": {"sed": 1}}, "to", "to.seed: field required"),
        ({"prompt": "frog", "to": {"seed": 1, "sed": 1}}, None, "to.sed: no such field"),
        ({"prompt": "frog", "guidence": 2}, None, "guidence: no such field; did you mean 'guidance'"),
        ({"model": "cifar10-small", "prompt": "all", "n": 256, "steps": 1000}, "steps", "POST /v1/jobs"),
        ([], None, "expected a JSON object"),
        ("frog", None, "expected a JSON object"),
    ],
)
def test_a_mistake_is_400_and_names_its_field(client: Any, scheduler: Any, body: Any, field: str, message: str) -> None:
    answer = client.post(URL, json=body)
    error = answer.json()["error"]
    assert answer.status_code == 400 and not scheduler.jobs, answer.text
    assert error["type"] == "invalid_request_error" and error["param"] == field and message in error["message"]
    assert "\n" not in error["message"] and (field is None or error["message"].startswith(field))


@pytest.mark.parametrize(
    "body", [b"{", b"", b"[" * 30000, b'{"prompt": NaN}', b"\xff\xfe", b'{"prompt": "\\ud800"}', b'{"\\ud800": 1}']
)
def test_what_is_not_json_is_400(client: Any, body: bytes) -> None:
    answer = client.post(URL, content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 400 and answer.json()["error"]["message"]


def test_a_form_is_no_json(client: Any) -> None:
    """So no other site's page can order pictures without the browser asking first, which is refused."""
    for headers in ({}, {"content-type": "text/plain"}, {"content-type": "application/x-www-form-urlencoded"}):
        assert client.post(URL, content=b'{"prompt": "frog"}', headers=headers).status_code == 415
    answer = client.options(URL, headers={"origin": "https://a.example", "access-control-request-method": "POST"})
    assert answer.status_code == 405 and "access-control-allow-origin" not in answer.headers


def test_unknown_names_are_404_and_methods_405(client: Any) -> None:
    answer = client.post(URL, json={"model": "cifar10-trubo", "prompt": "frog"})
    error = answer.json()["error"]
    assert answer.status_code == 404 and error["code"] == "model_not_found" and "cifar10-turbo'?" in error["message"]
    for path in ("/nothing", "/v1/models/nothing", "/images/nothing.png", "/v1/jobs/x"):
        assert client.get(path).status_code == 404 and client.get(path).json()["error"]["type"] == "not_found_error"
    assert client.get(URL).status_code == 405 and client.get(URL).json()["error"]["message"] == "method not allowed"


def test_a_full_queue_is_429_and_a_closed_one_503(client: Any, scheduler: Any) -> None:
    from cfgdiff.runtime.server.scheduler import Closed, Full

    scheduler.error = Full("too many", 7)
    answer = client.post(URL, json={"prompt": "frog"})
    assert (answer.status_code, answer.headers["retry-after"]) == (429, "7")
    assert answer.json()["error"]["code"] == "rate_limit_exceeded"
    scheduler.error = Closed("closing")
    answer = client.post(URL, json={"prompt": "frog", "stream": True})
    assert answer.status_code == 503 and answer.headers["retry-after"]


@pytest.mark.parametrize("stream", [False, True])
def test_an_engine_that_fails_is_500_and_its_words_stay_here(client: Any, scheduler: Any, stream: bool) -> None:
    from cfgdiff.runtime.server.scheduler import Failed

    scheduler.fail = Failed("/secret/model.onnx: no memory", "engine")
    answer = client.post(URL, json={"prompt": "frog", "stream": stream})
    assert "secret" not in answer.text and "server's log" in answer.text
    assert answer.status_code == (200 if stream else 500) and ("event: error" in answer.text) == stream
    scheduler.fail = None
    assert client.post(URL, json={"prompt": "frog"}).status_code == 200


def test_an_error_nobody_expected_is_500_without_a_traceback(client: Any, scheduler: Any) -> None:
    scheduler.error = RuntimeError("/secret/path")
    answer = client.post(URL, json={"prompt": "frog"})
    assert answer.status_code == 500 and answer.json()["error"]["type"] == "server_error"
    assert "secret" not in answer.text and "Traceback" not in answer.text


def test_what_takes_too_long_is_504_and_cancelled(served: list[Any], scheduler: Any) -> None:
    from fastapi.testclient import TestClient

    from cfgdiff.runtime.server.http import make_app
    from cfgdiff.runtime.server.limits import Limits
    from cfgdiff.runtime.server.scheduler import Failed

    scheduler.hold.set()
    with TestClient(make_app(served, Limits(seconds=0.1))) as client:
        assert client.post(URL, json={"prompt": "frog"}).status_code == 504
        assert scheduler.jobs[0].cancelled.wait(5)
        scheduler.fail = Failed("deadline: late", "deadline")
        assert client.post(URL, json={"prompt": "frog"}).json()["error"]["code"] == "timeout"
    assert scheduler.closed


def frames(text: str) -> list[tuple[str, dict[str, Any]]]:
    """The server-sent events in a text."""
    found = re.findall(r"event: (.+)\ndata: (.+)\n\n", text)
    return [(kind, json.loads(data)) for kind, data in found]


def test_a_stream_gives_previews_and_pictures(client: Any, scheduler: Any) -> None:
    body = {"prompt": "2 frogs", "steps": 4, "seed": 1, "stream": True, "partial_images": 2}
    answer = client.post(URL, json=body)
    assert answer.headers["content-type"].startswith("text/event-stream") and scheduler.jobs[0].settings["watch"]
    events = [(kind.removeprefix("image_generation."), data) for kind, data in frames(answer.text)]
    order = [(kind, data["index"], data.get("partial_image_index")) for kind, data in events]
    each = [("partial_image", 0), ("partial_image", 1), ("completed", None)]
    assert order == [(kind, i, k) for i in (0, 1) for kind, k in each]
    shades = [pixels(base64.b64decode(data["b64_json"]))[0, 0, 0] for kind, data in events if kind == "partial_image"]
    assert shades[:2] == [np.rint((1 + step / 4) * 127.5) for step in (2, 3)]
    assert events[2][1]["note"]["seed"] == 1 and events[2][1]["type"] == "image_generation.completed"


def test_a_stream_without_previews_does_not_watch(client: Any, scheduler: Any) -> None:
    text = client.post(URL, json={"prompt": "frog", "steps": 4, "stream": True}).text
    assert [kind for kind, _ in frames(text)] == ["image_generation.completed"]
    assert not scheduler.jobs[0].settings["watch"]


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_hangs_up_cancels_its_pictures(running: Callable[..., str], scheduler: Any, stream: bool) -> None:
    scheduler.hold.set()
    port = int(running().rsplit(":", 1)[1])
    body = json.dumps({"prompt": "frog", "stream": stream})
    with socket.create_connection(("127.0.0.1", port)) as connection:
        head = (
            f"POST {URL} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        )
        connection.sendall((head + body).encode())
        until = time.monotonic() + 5
        while not scheduler.jobs and time.monotonic() < until:
            time.sleep(0.01)
    assert scheduler.jobs[0].cancelled.wait(5)


def test_models_say_what_they_take(client: Any, turbo: Bundle) -> None:
    tree = client.get("/v1/models").json()
    assert tree["object"] == "list" and [model["id"] for model in tree["data"]] == ["cifar10-turbo", "cifar10-small"]
    one = client.get("/v1/models/cifar10-turbo").json()
    assert one == tree["data"][0] and one["object"] == "model" and one["size"] == "32x32"
    assert one["classes"] == turbo.class_names and one["choices"]["steps"] == sorted(turbo.fitted)
    assert one["choices"]["guidance"] == list(turbo.guidance_input or ()) and one["choices"]["sampler"] == ["fitted"]
    assert str(turbo.path) not in json.dumps(tree)


def test_health_figures_and_description(client: Any) -> None:
    assert client.get("/healthz").json() == {"status": "ok"} and client.get("/readyz").json() == {"status": "ready"}
    client.post(URL, json={"prompt": "frog"})
    client.get("/nothing/at/all")
    text = client.get("/metrics").text
    assert 'cfgdiff_requests_total{method="POST",route="/v1/images/generations",status="200"} 1.0' in text
    assert 'cfgdiff_requests_total{method="other",route="other",status="404"} 1.0' in text and "nothing" not in text
    assert (
        'cfgdiff_queued{model="cifar10-small"} 3.0' in text and 'cfgdiff_calls_total{model="cifar10-turbo"} 7.0' in text
    )
    paths = client.get("/openapi.json").json()["paths"]
    assert {URL, "/v1/models", "/v1/jobs", "/v1/jobs/{name}/events", "/healthz", "/metrics"} <= paths.keys()


def test_a_server_that_drains_takes_nothing(client: Any) -> None:
    client.app.state.server.draining = True
    assert client.get("/readyz").status_code == 503 and client.get("/healthz").status_code == 200
    answer = client.post(URL, json={"prompt": "frog"})
    assert answer.status_code == 503 and answer.json()["error"]["code"] == "shutting_down"


def test_two_models_of_one_name_are_refused(served: list[Any]) -> None:
    from cfgdiff.runtime.errors import BadInput
    from cfgdiff.runtime.server.http import make_app

    with pytest.raises(BadInput, match="model: expected models of different names, found cifar10-turbo twice"):
        make_app([served[0], served[0]])


def test_kept_pictures_go_where_there_are_too_many() -> None:
    from cfgdiff.runtime.server.drawing import Kept
    from cfgdiff.runtime.server.limits import Limits

    kept = Kept(Limits(kept_bytes=25))
    for name in "abc":
        kept.put(name, name.encode() * 10)
    assert kept.get("a") is None and kept.get("b") == b"b" * 10 and kept.get("c") == b"c" * 10


def test_threads_end_with_their_requests(client: Any) -> None:
    before = threading.active_count()
    for _ in range(20):
        client.post(URL, json={"prompt": "frog"})
    assert threading.active_count() <= before + 3  # those that wait are used again
