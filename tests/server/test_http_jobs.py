"""Jobs: drawn into files, listed, cancelled, watched, and continued after a restart."""

import base64
import io
import json
import tarfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("fastapi", reason="needs the serve extra: pip install 'cfgdiff[serve]' httpx")

from cfgdiff.runtime.errors import Failure


@contextmanager
def server(served: list[Any], folder: Path, **limits: Any) -> Iterator[Any]:
    """A client of a server that keeps its jobs in `folder`."""
    from fastapi.testclient import TestClient

    from cfgdiff.runtime.server.http import make_app
    from cfgdiff.runtime.server.limits import Limits
    from cfgdiff.runtime.server.orders import Orders

    own = Limits(**limits)
    orders = Orders(folder, {one.bundle.name: one for one in served}, own)
    with TestClient(make_app(served, own, orders=orders), raise_server_exceptions=False) as client:
        yield client


def ended(client: Any, name: str) -> dict[str, Any]:
    """The job when it is no longer waiting or drawn."""
    until = time.monotonic() + 20
    while (state := client.get(f"/v1/jobs/{name}").json())["status"] in ("queued", "running"):
        assert time.monotonic() < until, state
        time.sleep(0.01)
    return dict(state)


def until(check: Callable[[], object]) -> None:
    end = time.monotonic() + 10
    while not check():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.fixture(autouse=True)
def _small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    from cfgdiff.runtime.server import orders

    monkeypatch.setattr(orders, "PIECE", 4)


def test_a_job_draws_a_tar_with_notes(served: list[Any], scheduler: Any, tmp_path: Path) -> None:
    with server(served, tmp_path / "jobs") as client:
        answer = client.post("/v1/jobs", json={"prompt": "6 frogs, 4 ships", "seed": 3, "steps": 2})
        job = answer.json()
        assert answer.status_code == 202 and (job["object"], job["n"], job["format"]) == ("job", 10, "tar")
        state = ended(client, job["id"])
        assert (state["status"], state["done"], state["error"], state["seed"]) == ("done", 10, None, 3)
        result = client.get(f"/v1/jobs/{job['id']}/result")
        assert result.headers["content-type"] == "application/x-tar"
        assert f'filename="{job["id"]}.tar"' in result.headers["content-disposition"]
        with tarfile.open(fileobj=io.BytesIO(result.content)) as archive:
            notes = [json.load(archive.extractfile(m)) for m in archive if m.name.endswith(".json")]  # type: ignore[arg-type]
            picture = Image.open(archive.extractfile("000007.png"))  # type: ignore[arg-type]
            assert np.asarray(picture)[0, 0].tolist() == [8, 3, 7]
        assert [(note["index"], note["class"]) for note in notes][5:7] == [(5, "frog"), (6, "ship")] and len(
            notes
        ) == 10
        assert [entry["id"] for entry in client.get("/v1/jobs").json()["data"]] == [job["id"]]
        assert {job.settings["priority"] for job in scheduler.jobs} == {-1}
        assert client.delete(f"/v1/jobs/{job['id']}").json() == {"id": job["id"], "object": "job", "deleted": True}
        assert client.get(f"/v1/jobs/{job['id']}").status_code == 404 and not list((tmp_path / "jobs").iterdir())


def test_a_job_draws_arrays(served: list[Any], tmp_path: Path) -> None:
    with server(served, tmp_path) as client:
        job = client.post("/v1/jobs", json={"class": ["frog", "ship"], "n": 9, "format": "npz", "seed": 1}).json()
        assert ended(client, job["id"])["status"] == "done"
        arrays = np.load(io.BytesIO(client.get(f"/v1/jobs/{job['id']}/result").content))
        assert arrays["labels"].tolist() == [6, 8, 6, 8, 6, 8, 6, 8, 6] and arrays["pictures"].shape == (9, 32, 32, 3)
        assert arrays["pictures"][:, 0, 0, 2].tolist() == list(range(9))


def test_a_job_continues_after_a_restart_where_it_stopped(served: list[Any], scheduler: Any, tmp_path: Path) -> None:
    with server(served, tmp_path) as client:
        finished = client.post("/v1/jobs", json={"class": "frog", "n": 10}).json()
        ended(client, finished["id"])
        expected = client.get(f"/v1/jobs/{finished['id']}/result").content
        scheduler.hold_from = 8
        job = client.post("/v1/jobs", json={"class": "frog", "n": 10, "seed": finished["seed"]}).json()
        until(lambda: client.get(f"/v1/jobs/{job['id']}").json()["done"] == 8)
        assert client.get(f"/v1/jobs/{job['id']}/result").status_code == 409
    assert not (tmp_path / f"{job['id']}.tar").exists()
    scheduler.hold_from, scheduler.closed, before = None, False, len(scheduler.jobs)
    with server(served, tmp_path) as client:
        assert ended(client, job["id"])["done"] == 10
        assert [one.plan.indices.tolist() for one in scheduler.jobs[before:]] == [[8, 9]]
        assert client.get(f"/v1/jobs/{job['id']}/result").content == expected  # that of an undisturbed one
        assert [entry["status"] for entry in client.get("/v1/jobs").json()["data"]] == ["done", "done"]


def test_a_random_seed_is_the_same_after_a_restart(served: list[Any], scheduler: Any, tmp_path: Path) -> None:
    scheduler.hold.set()
    with server(served, tmp_path) as client:
        job = client.post("/v1/jobs", json={"class": "frog", "n": 2}).json()
    scheduler.hold.clear()
    with server(served, tmp_path) as client:
        assert ended(client, job["id"])["seed"] == job["seed"]
    assert {int(one.plan.seeds[0]) for one in scheduler.jobs} == {job["seed"]}


def test_a_job_that_is_removed_stops_and_leaves_nothing(served: list[Any], scheduler: Any, tmp_path: Path) -> None:
    scheduler.hold.set()
    with server(served, tmp_path) as client:
        names = [client.post("/v1/jobs", json={"class": "frog", "n": 100}).json()["id"] for _ in range(6)]
        until(lambda: len(scheduler.jobs) == 8)  # two pieces of four jobs
        for name in reversed(names):  # those that wait, and those that are drawn
            assert client.delete(f"/v1/jobs/{name}").status_code == 200
        assert scheduler.jobs[0].cancelled.wait(5)
        until(lambda: not list(tmp_path.iterdir()))
        scheduler.hold.clear()
        assert ended(client, client.post("/v1/jobs", json={"class": "ship"}).json()["id"])["status"] == "done"


def test_an_engine_that_fails_now_and_then_costs_no_job(served: list[Any], scheduler: Any, tmp_path: Path) -> None:
    scheduler.fail_once = True
    with server(served, tmp_path) as client:
        assert ended(client, client.post("/v1/jobs", json={"class": "frog", "n": 9}).json()["id"])["done"] == 9


def test_an_engine_that_always_fails_ends_the_job(served: list[Any], scheduler: Any, tmp_path: Path) -> None:
    from cfgdiff.runtime.server.scheduler import Failed

    scheduler.fail = Failed("/secret: no memory", "engine")
    with server(served, tmp_path) as client:
        name = client.post("/v1/jobs", json={"class": "frog"}).json()["id"]
        state = ended(client, name)
        assert state["status"] == "failed" and "server's log" in state["error"] and "secret" not in json.dumps(state)
    scheduler.fail = None
    with server(served, tmp_path) as client:  # it is not tried again
        assert client.get(f"/v1/jobs/{name}").json() == state


def test_a_full_queue_makes_a_job_wait(served: list[Any], scheduler: Any, tmp_path: Path) -> None:
    from cfgdiff.runtime.server.scheduler import Full

    scheduler.error = Full("full", 0)
    with server(served, tmp_path) as client:
        name = client.post("/v1/jobs", json={"class": "frog", "n": 5}).json()["id"]
        time.sleep(0.05)
        assert client.get(f"/v1/jobs/{name}").json()["status"] == "running"
        scheduler.error = None
        assert ended(client, name)["done"] == 5


def test_events_give_progress_and_previews(
    running: Callable[..., str], served: list[Any], scheduler: Any, tmp_path: Path
) -> None:
    import httpx

    from cfgdiff.runtime.server.limits import Limits
    from cfgdiff.runtime.server.orders import Orders

    scheduler.hold.set()
    url = running(orders=Orders(tmp_path, {one.bundle.name: one for one in served}, Limits()))
    name = httpx.post(f"{url}/v1/jobs", json={"class": "frog", "n": 12, "steps": 4}).json()["id"]
    until(lambda: len(scheduler.jobs) == 2)
    events: list[tuple[str, dict[str, Any]]] = []
    with httpx.stream("GET", f"{url}/v1/jobs/{name}/events") as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        for line in answer.iter_lines():
            scheduler.slow = 0.05
            scheduler.hold.clear()
            kind, _, text = line.partition(": ")
            if kind == "event":
                events.append((text, {}))
            elif kind == "data":
                events[-1] = events[-1][0], json.loads(text)
    previews = [base64.b64decode(data["b64_json"]) for kind, data in events if kind == "preview"]
    assert events[0][0] == "progress" and events[0][1]["done"] == 0 and events[-1][0] == "end"
    assert events[-1][1]["status"] == "done" and events[-1][1]["done"] == 12
    assert previews and all(Image.open(io.BytesIO(png)).size == (32, 32) for png in previews)
    assert [job.settings["watch"] for job in scheduler.jobs] == [False, False, True]  # only while somebody looks


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        ({"class": "forg"}, 400, "no class 'forg'"),
        ({"class": "frog", "format": "zip"}, 400, "format: "),
        ({"class": "frog", "n": 51}, 400, "at most 50"),
        ({"class": "frog", "stream": True}, 400, "stream: no such field"),
        ({"class": "frog", "model": "x"}, 404, "no model 'x'"),
    ],
)
def test_a_mistake_orders_nothing(
    served: list[Any], tmp_path: Path, body: dict[str, Any], status: int, message: str
) -> None:
    with server(served, tmp_path, order=50) as client:
        answer = client.post("/v1/jobs", json=body)
        assert answer.status_code == status and message in answer.json()["error"]["message"]
    assert not list(tmp_path.iterdir())


def test_jobs_are_counted(served: list[Any], tmp_path: Path) -> None:
    with server(served, tmp_path, orders=1) as client:
        client.post("/v1/jobs", json={"class": "frog"})
        answer = client.post("/v1/jobs", json={"class": "frog"})
        assert answer.status_code == 429 and answer.headers["retry-after"] == "60"


def test_without_a_folder_there_are_no_jobs(client: Any) -> None:
    answer = client.post("/v1/jobs", json={"class": "frog"})
    assert answer.status_code == 404 and answer.json()["error"]["code"] == "no_jobs"


def test_a_folder_with_other_things_is_kept_as_it_is(
    served: list[Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "other.json").write_text("[]")
    (tmp_path / ".0123456789abcdef.tar.01234567.partial").write_bytes(b"of a job that was removed")
    with server(served, tmp_path) as client:
        assert client.get("/v1/jobs").json()["data"] == []
    assert [path.name for path in tmp_path.iterdir()] == ["other.json"] and "not a job" in caplog.text


def test_a_folder_that_cannot_be_used_is_a_failure(served: list[Any], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(Failure, match="jobs_dir: cannot be used"), server(served, tmp_path / "file"):
        pass


def test_a_large_job_does_not_hold_up_a_small_one(served: list[Any], scheduler: Any, tmp_path: Path) -> None:
    scheduler.hold_from = 8
    with server(served, tmp_path) as client:
        large = client.post("/v1/jobs", json={"class": "frog", "n": 100}).json()["id"]
        small = client.post("/v1/jobs", json={"class": "ship", "n": 3}).json()["id"]
        assert ended(client, small)["status"] == "done"
        assert client.get(f"/v1/jobs/{large}").json()["status"] == "running"


def test_a_job_of_a_model_that_is_not_served_waits_for_a_server_with_it(
    served: list[Any], scheduler: Any, tmp_path: Path
) -> None:
    scheduler.hold.set()
    with server(served, tmp_path) as client:
        name = client.post("/v1/jobs", json={"class": "frog"}).json()["id"]
    scheduler.hold.clear()
    with server(served[1:], tmp_path) as client:
        other = client.post("/v1/jobs", json={"class": "frog"}).json()["id"]
        assert ended(client, other)["status"] == "done" and client.get(f"/v1/jobs/{name}").json()["status"] == "queued"
    with server(served, tmp_path) as client:
        assert ended(client, name)["status"] == "done"
