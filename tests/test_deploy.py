"""The container, as far as it can be checked without one: its files name what there is. It was not built here."""

import json
import re
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest

from cfgdiff.cli.serve import serve

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomli", reason="pyproject.toml is read with tomllib (Python 3.11) or tomli")

yaml = pytest.importorskip("yaml", reason="needs the train extra: pip install 'cfgdiff[train]'")
ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"
TREE = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT, FOLDERS = TREE["project"], TREE["tool"]["setuptools"]["package-dir"].values()


def instructions() -> list[tuple[str, str]]:
    """The Dockerfile as (instruction, arguments), lines joined, without comments."""
    text = re.sub(r"^\s*#.*\n", "", (DEPLOY / "Dockerfile").read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    return [(name, rest.strip()) for name, _, rest in (line.partition(" ") for line in text.splitlines() if line)]


def arguments(name: str) -> list[str]:
    return [rest for found, rest in instructions() if found == name]


def test_the_image_starts_the_server_as_its_port_and_health_say() -> None:
    (entry,), (port,), (health,) = arguments("ENTRYPOINT"), arguments("EXPOSE"), arguments("HEALTHCHECK")
    program, command, *flags = json.loads(entry)
    assert program in PROJECT["scripts"] and command == "serve"
    context = serve.make_context("serve", [*flags, *json.loads(arguments("CMD")[0])])
    assert context.params["host"] == "0.0.0.0" and context.params["port"] == int(port)
    (volume,) = arguments("VOLUME")
    assert str(context.params["jobs_dir"]) == volume
    program, _, code = json.loads(health.partition("CMD ")[2])
    compile(code, "HEALTHCHECK", "exec")
    assert program == "python" and f"http://127.0.0.1:{port}/healthz" in code


def test_prometheus_finds_figures_where_it_looks() -> None:
    pytest.importorskip("fastapi", reason="needs the serve extra: pip install 'cfgdiff[serve]' httpx")
    from fastapi.testclient import TestClient

    from cfgdiff.runtime.server.http import make_app

    path = yaml.safe_load((DEPLOY / "prometheus.yaml").read_text())["scrape_configs"][0]["metrics_path"]
    client = TestClient(make_app([], token="secret"))
    assert client.get(path).status_code == 401
    text = client.get(path, headers={"authorization": "Bearer secret"}).text
    page = (ROOT / "docs" / "serving.md").read_text()
    named = set(re.findall(r"`(cfgdiff_\w+)`", page))
    assert "cfgdiff_requests_total" in named and "# TYPE cfgdiff_requests_total counter" in text


def test_the_image_is_small_and_has_no_root() -> None:
    names = [name for name, _ in instructions()]
    last = len(names) - 1 - names[::-1].index("FROM")
    image = instructions()[last:]
    assert image[0][1].split(":")[1].endswith("-slim") and "USER" in names[last:] and arguments("USER") != ["root"]
    assert "org.opencontainers.image.licenses" in arguments("LABEL")[0] and PROJECT["license"] in arguments("LABEL")[0]
    installs = [rest for rest in arguments("RUN") if "pip " in rest]
    assert len(installs) == 2 and all("--no-cache-dir" in rest for rest in installs)
    extras = re.search(r"\[([\w,]+)\]", installs[-1])
    assert (
        extras is not None
        and set(extras[1].split(",")) == {"serve", "openvino"} <= PROJECT["optional-dependencies"].keys()
    )
    for rest in arguments("RUN"):  # what a slim image of Python and Debian has
        programs = {shlex.split(part)[0] for part in rest.split("&&")}
        assert programs <= {"pip", "useradd", "install"}


def test_the_context_holds_all_that_the_wheel_is_made_of() -> None:
    ignored = (DEPLOY / "Dockerfile.dockerignore").read_text().split()
    kept = {line[1:] for line in ignored if line.startswith("!")}
    assert ignored[0] == "**" and {"pyproject.toml", "README.md", "LICENSE"} <= kept
    assert set(FOLDERS) <= kept and all((ROOT / name).exists() for name in kept)


def test_compose_and_prometheus_agree_with_the_server() -> None:
    compose: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    scrape = yaml.safe_load((DEPLOY / "prometheus.yaml").read_text())["scrape_configs"][0]
    server, prometheus = compose["services"]["cfgdiff"], compose["services"]["prometheus"]
    assert (DEPLOY / server["build"]["context"] / server["build"]["dockerfile"]).resolve() == DEPLOY / "Dockerfile"
    flags = json.loads(arguments("ENTRYPOINT")[0])[2:] + server["command"]
    token = str(serve.make_context("serve", list(flags)).params["token_file"])
    assert token == scrape["authorization"]["credentials_file"] == "/run/secrets/token"
    assert server["secrets"] == prometheus["secrets"] == list(compose["secrets"])
    assert scrape["static_configs"][0]["targets"] == [f"cfgdiff:{arguments('EXPOSE')[0]}"]
    assert scrape["metrics_path"] == "/metrics"
    assert all(port.startswith("127.0.0.1:") for each in (server, prometheus) for port in each["ports"])
    named = {volume.split(":")[0] for each in (server, prometheus) for volume in each["volumes"]}
    assert named == {*compose["volumes"], "./prometheus.yaml"}
