"""The official `openai` package against a running server, and the example of the page in docs/."""

import base64
import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("fastapi", reason="needs the serve extra: pip install 'cfgdiff[serve]' httpx")

openai = pytest.importorskip("openai", reason="needs the client: pip install openai")
PAGE = Path(__file__).parents[2] / "docs" / "serving.md"


@pytest.fixture
def client(running: Callable[..., str]) -> Any:
    """A client of a server with a token."""
    with openai.OpenAI(base_url=f"{running(token='secret')}/v1", api_key="secret", max_retries=0) as found:
        yield found


def test_it_draws_pictures(client: Any) -> None:
    answer = client.images.generate(model="cifar10-turbo", prompt="3 frogs, 1 ship", size="32x32")
    assert len(answer.data) == 4 and answer.data[3].revised_prompt == "ship"
    picture = Image.open(io.BytesIO(base64.b64decode(answer.data[0].b64_json)))
    assert picture.size == (32, 32) and np.asarray(picture)[0, 0, 0] == 6


def test_it_takes_our_fields_and_gives_notes(client: Any) -> None:
    more = {"seed": 5, "steps": 2, "guidance": 1.5}
    answer = client.images.generate(prompt="frog", n=2, quality="standard", user="someone", extra_body=more)
    assert [image.note["seed"] for image in answer.data] == [5, 5] and answer.data[1].note["index"] == 1


def test_it_reads_urls(client: Any) -> None:
    import httpx

    (image,) = client.images.generate(prompt="ship", response_format="url").data
    assert httpx.get(image.url).headers["content-type"] == "image/png"


def test_it_streams(client: Any, scheduler: Any) -> None:
    events = list(client.images.generate(prompt="frog", stream=True, partial_images=1, extra_body={"steps": 4}))
    assert [event.type.split(".")[1] for event in events] == ["partial_image", "completed"]
    assert events[0].partial_image_index == 0 and events[1].note["class"] == "frog"
    from cfgdiff.runtime.server.scheduler import Failed

    scheduler.fail = Failed("no memory", "engine")
    with pytest.raises(openai.APIError, match="could not be drawn"):
        list(client.images.generate(prompt="frog", stream=True))


def test_it_lists_models(client: Any) -> None:
    assert [model.id for model in client.models.list()] == ["cifar10-turbo", "cifar10-small"]
    assert client.models.retrieve("cifar10-small").size == "32x32"


def test_it_raises_its_own_errors(client: Any, scheduler: Any) -> None:
    from cfgdiff.runtime.server.scheduler import Full

    with pytest.raises(openai.BadRequestError, match="did you mean 'frog'") as bad:
        client.images.generate(prompt="forg")
    assert bad.value.param == "prompt" and bad.value.code == "invalid_value"
    with pytest.raises(openai.NotFoundError, match="no model 'dall-e-3'"):
        client.images.generate(prompt="frog", model="dall-e-3")
    with pytest.raises(openai.AuthenticationError):
        client.with_options(api_key="wrong").models.list()
    scheduler.error = Full("full", 3)
    with pytest.raises(openai.RateLimitError) as full:
        client.images.generate(prompt="frog")
    assert full.value.response.headers["retry-after"] == "3"


def test_the_example_of_the_page_runs(
    running: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (example,) = re.findall(r"^```python\n(.+?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    assert "http://127.0.0.1:8000" in example
    monkeypatch.chdir(tmp_path)
    exec(example.replace("http://127.0.0.1:8000", running()), {})
    assert Image.open(tmp_path / "frog.png").text.keys() == {"cfgdiff"}  # type: ignore[attr-defined]
