"""The page: what its source promises, and, where there is a browser, what it does."""

import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="needs the serve extra: pip install 'cfgdiff[serve]' httpx")

from cfgdiff.runtime.server.http import PAGE

DRIVER = Path(__file__).with_name("page_driver.mjs")
TEXT = PAGE.read_text(encoding="utf-8")


class Tags(HTMLParser):
    """The elements of the page, each with the elements that it is inside."""

    def __init__(self) -> None:
        super().__init__()
        self.all: list[tuple[str, dict[str, str | None], list[str]]] = []
        self._open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.all.append((tag, dict(attrs), list(self._open)))
        if tag not in ("meta", "link", "input", "img"):
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag, f"</{tag}> closes another element"


def tags() -> list[tuple[str, dict[str, str | None], list[str]]]:
    """See `Tags`."""
    parser = Tags()
    parser.feed(TEXT)
    return parser.all


def test_it_is_one_small_file_that_loads_nothing() -> None:
    assert len(TEXT.splitlines()) <= 400
    assert not re.search(r"https?://|@import|url\(", TEXT)
    for tag, attributes, _ in tags():
        assert tag not in ("iframe", "object", "embed") and not attributes.get("src"), tag
        assert (attributes.get("href") or "data:").startswith("data:"), tag
        assert not any(name.startswith("on") or name == "style" for name in attributes), "the policy forbids it"


def test_what_comes_from_the_server_is_never_html() -> None:
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|new Function", TEXT)


def test_every_control_has_a_name() -> None:
    found = tags()
    for tag, _, inside in found:
        if tag in ("input", "select"):
            assert "label" in inside, "a control without a label"
    assert ("html", {"lang": "en"}, []) in found
    assert [attributes["role"] for tag, attributes, _ in found if attributes.get("id") == "status"] == ["status"]
    assert all("alt" in attributes for tag, attributes, _ in found if tag == "img")


def test_every_name_in_the_script_is_in_the_page() -> None:
    ids = {attributes["id"] for _, attributes, _ in tags() if "id" in attributes}
    used = set(re.findall(r'\$\("([\w-]+)"\)', TEXT))
    assert used and used <= ids and {f"{name}-shown" for name in ("n", "guidance", "steps")} <= ids


@pytest.mark.skipif(shutil.which("node") is None, reason="needs Node.js to parse the script")
def test_the_script_is_javascript_and_reads_events_in_parts(tmp_path: Path) -> None:
    script = TEXT.split("<script>")[1].split("</script>")[0]
    (tmp_path / "page.js").write_text(script)
    subprocess.run(["node", "--check", str(tmp_path / "page.js")], check=True)
    function = re.search(r"^function eventsIn.+?^}", script, re.DOTALL | re.MULTILINE)
    assert function is not None
    code = (
        function[0]
        + r"""
    const text = 'event: a\ndata: {"i": 1}\n\n: alive\n\nevent: b\ndata: {"i": 2}\n\nevent: c\ndata: {"i"';
    for (let cut = 0; cut <= text.length; cut++) {
      const first = eventsIn(text.slice(0, cut)), second = eventsIn(first.rest + text.slice(cut));
      const all = [...first.events, ...second.events].map(event => event.i);
      if (String(all) !== "1,2" || second.rest !== 'event: c\ndata: {"i"') throw new Error("cut at " + cut);
    }"""
    )
    subprocess.run(["node", "-e", code], check=True)


@pytest.mark.skipif(shutil.which("node") is None, reason="needs Node.js 18 to run the script")
@pytest.mark.parametrize("token", [None, "secret"])
def test_its_script_does_what_users_ask(running: Callable[..., str], token: str | None) -> None:
    command = ["node", str(DRIVER), str(PAGE), running(token=token), *([token] if token else [])]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.stdout == "ok\n", done.stderr


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Headless Chromium: Playwright's own, or one on the path."""
    get = "pip install playwright && playwright install chromium"
    sync_api = pytest.importorskip("playwright.sync_api", reason=f"needs Playwright and a browser: {get}")
    names = ("chromium", "chromium-browser", "chromium-headless-shell", "google-chrome")
    path = next(filter(None, map(shutil.which, names)), None)
    with sync_api.sync_playwright() as playwright:
        try:
            found = playwright.chromium.launch(executable_path=path)
        except sync_api.Error:
            pytest.skip(f"needs a browser: {get}")
        yield found
        found.close()


@pytest.fixture
def page(browser: Any, running: Callable[..., str]) -> Iterator[Any]:
    """The page, 400 pixels wide, with its first pictures. Nothing may be written on the console."""
    found, wrong = browser.new_page(viewport={"width": 400, "height": 800}), list[str]()
    found.set_default_timeout(5000)
    found.on("console", lambda message: wrong.append(message.text))
    found.on("pageerror", lambda error: wrong.append(str(error)))
    found.goto(running())
    found.get_by_text("16 pictures in").wait_for()
    yield found
    found.close()
    assert not wrong


def test_it_draws_and_redraws(page: Any, scheduler: Any) -> None:
    assert page.locator("#grid img").count() == 16
    page.get_by_label("ship", exact=True).check()
    page.get_by_label("Number").fill("3")
    page.get_by_text("3 pictures in").wait_for()
    alts = page.locator("#grid img").evaluate_all("images => images.map(image => image.alt)")
    assert [alt.split(",")[0] for alt in alts] == ["airplane", "ship", "airplane"]
    page.get_by_label("Seed").fill("40")
    page.get_by_role("button", name="airplane, seed 42").wait_for()
    assert page.evaluate("document.documentElement.scrollWidth") <= 400  # nothing sticks out


def test_a_picture_has_note_variations_interpolation_and_download(page: Any) -> None:
    page.get_by_role("button", name="airplane, seed 2", exact=True).click()
    detail = page.get_by_role("region", name="Selected picture")
    assert "float32" in detail.inner_text() and detail.get_by_role("heading").inner_text() == "airplane, seed 2"
    with page.expect_download() as download:
        detail.get_by_role("link", name="Download").click()
    assert download.value.suggested_filename == "airplane-2.png"
    detail.get_by_role("button", name="Interpolate").click()
    page.get_by_role("button", name="airplane, seed 5", exact=True).click()
    page.get_by_role("button", name="airplane, seed 2, 50 % to airplane, seed 5").wait_for()
    assert page.locator("#grid img").count() == 9
    page.get_by_role("button", name="Draw").click()
    page.get_by_role("button", name="airplane, seed 3", exact=True).click()
    page.get_by_role("button", name="Variations").click()
    page.get_by_role("button", name="airplane, seed 3, 30 % to airplane, seed 4").wait_for()


def test_the_controls_have_names_and_the_selected_picture_stands_below_the_others(page: Any) -> None:
    for name in ("Number", "Guidance", "Steps"):
        assert page.get_by_role("slider", name=name).count() == 1
    page.set_viewport_size({"width": 1100, "height": 800})
    page.locator("#grid button").first.click()
    above, below = (page.locator(part).bounding_box() for part in ("#grid", "#detail"))
    assert 0 <= below["y"] - (above["y"] + above["height"]) < 40


def test_it_works_by_keyboard(page: Any) -> None:
    page.locator("#grid button").first.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "name" and page.locator("#detail").is_visible()
    page.keyboard.press("Escape")
    assert page.locator("#detail").is_hidden()
    assert page.evaluate("document.activeElement.firstChild.alt") == "airplane, seed 1"


def test_a_new_setting_cancels_the_request_before(page: Any, scheduler: Any) -> None:
    scheduler.hold.set()
    page.get_by_label("Number").fill("5")
    page.get_by_text("Drawing 5 pictures").wait_for()
    page.get_by_label("Number").fill("6")
    page.get_by_text("Drawing 6 pictures").wait_for()
    assert scheduler.jobs[1].n == 5 and scheduler.jobs[1].cancelled.wait(5)
    scheduler.hold.clear()
    page.get_by_text("6 pictures in").wait_for()


def test_it_asks_for_the_token(browser: Any, running: Callable[..., str]) -> None:
    page = browser.new_page()
    page.goto(running(token="secret"))
    page.get_by_label("Token").fill("secret")
    page.keyboard.press("Enter")
    page.get_by_text("16 pictures in").wait_for()
    page.close()
