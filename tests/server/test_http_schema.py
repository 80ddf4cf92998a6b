"""schemathesis over the description of the interface: every answer is one that it lists, and none is 5xx."""

import re
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest
from fakes import Halves, wait

pytest.importorskip("fastapi", reason="needs the serve extra: pip install 'cfgdiff[serve]' httpx")
pytest.importorskip("schemathesis", reason="is missing: pip install 'cfgdiff[dev]'")

import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis.checks import CHECKS, load_all_checks

from cfgdiff.runtime import Bundle

load_all_checks()
# What a schema does not say: which classes and numbers of steps there are.
EXCLUDED = [CHECKS.get_one("positive_data_acceptance")]
PATHS = re.compile(r"(?<![\w:/])/(?:home|tmp|root|usr|var|etc)/|Traceback")  # of this machine


@pytest.fixture(scope="module")
def client(turbo: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Of a server in this process, with jobs."""
    from fastapi.testclient import TestClient

    from cfgdiff.runtime.server.drawing import Served
    from cfgdiff.runtime.server.http import make_app
    from cfgdiff.runtime.server.limits import Limits
    from cfgdiff.runtime.server.orders import Orders
    from cfgdiff.runtime.server.scheduler import Scheduler

    limits = Limits(order=100, orders=20)
    note = {"model": turbo.name, "model_sha256": "0" * 64, "engine": "halves", "precision": "float32"}
    served = Served(turbo, Scheduler(turbo, Halves(), rows=32), note)
    orders = Orders(tmp_path_factory.mktemp("jobs"), {turbo.name: served}, limits)
    app = make_app([served], limits, orders=orders)
    with TestClient(app, raise_server_exceptions=False) as client:
        yield client


@pytest.fixture(scope="module")
def known(client: Any) -> dict[str, str]:
    """A name for the paths that have one: of a job that is done, a model, and a picture."""
    picture = client.post("/v1/images/generations", json={"prompt": "frog", "response_format": "url"}).json()
    job = client.post("/v1/jobs", json={"prompt": "frog", "n": 3}).json()["id"]
    wait(lambda: client.get(f"/v1/jobs/{job}").json()["status"] == "done")
    names = {"/images/{name}.png": re.split(r"[/.]", picture["data"][0]["url"])[-2]}
    names["/v1/models/{name}"] = client.get("/v1/models").json()["data"][0]["id"]
    return names | {f"/v1/jobs/{{name}}{rest}": job for rest in ("", "/result", "/events")}


def sensible(case: Any) -> Any:
    """A request whose words and numbers are some that the model knows, so that pictures are drawn."""
    body = {name: value for name, value in case.body.items() if name not in ("class", "model", "size", "sampler", "to")}
    body |= {"prompt": "frog", "n": min(body.get("n") or 1, 4), "seed": 7 if isinstance(body.get("seed"), list) else 8}
    body["steps"], body["guidance"] = 1 + (body.get("steps") or 0) % 4, 1 + abs(body.get("guidance") or 0) % 7
    case.body = body
    return case


def tried(client: Any, strategy: Any, examples: Any) -> "Counter[int]":
    """The statuses of the answers to some requests, each of which is checked."""
    seen = Counter[int]()

    def check(case: Any) -> None:
        asked = case.as_transport_kwargs(base_url="http://testserver")
        asked.pop("cookies", None)
        if not isinstance(asked.get("data"), dict):
            asked["content"] = asked.pop("data", None)
        response = client.request(**asked)
        seen[response.status_code] += 1
        case.validate_response(response, excluded_checks=EXCLUDED)
        assert response.status_code < 500 and not PATHS.search(response.text or "")

    with suppress(Unsatisfiable):  # an operation without parameters has no wrong ones
        examples(given(case=strategy)(check))()
    return seen


def test_every_answer_is_one_of_the_description(client: Any, known: dict[str, str], request: Any) -> None:
    """Bodies, names and queries as the description has them, and others; of jobs and models that there are, too."""
    examples = settings(
        max_examples=request.config.getoption("--api-examples"), deadline=None, database=None, derandomize=True,
        phases=[Phase.generate], suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    statuses = dict[str, Counter[int]]()
    found = [each.ok() for each in schemathesis.openapi.from_dict(client.app.openapi()).get_all_operations()]
    for operation in sorted(found, key=lambda operation: operation.method == "delete"):  # the job is read before
        ways = [operation.as_strategy(generation_mode=mode) for mode in schemathesis.GenerationMode]
        if operation.path in known:
            ways.append(operation.as_strategy(path_parameters={"name": known[operation.path]}))
        if operation.method == "post":
            ways.append(operation.as_strategy().filter(lambda case: isinstance(case.body, dict)).map(sensible))
        seen = statuses.setdefault(operation.label, Counter())
        for way in ways:
            seen.update(tried(client, way, examples))
    print(*statuses.items(), sep="\n")
    assert {200, 400} <= statuses["POST /v1/images/generations"].keys() and {202, 400} <= statuses[
        "POST /v1/jobs"
    ].keys()
    assert len(statuses) == 14 and all(200 in seen or 202 in seen for seen in statuses.values())
