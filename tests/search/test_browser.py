"""The page in a real browser. `make test-browser` runs it, with the extra `browser` and Chromium.

    IVJ_SCREENSHOT=docs/pictures/search.png IVJ_PAGE=http://127.0.0.1:8000/ \\
        IVJ_QUERY="two red squares move left" \\
        python -m pytest tests/search/test_browser.py -k picture

takes the picture of a running page instead of the one that the tests serve.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from internvideo_jax.search.server import Desk
from tests.search.test_server import started

webdriver: Any = pytest.importorskip(
    "selenium.webdriver", reason="no selenium; pip install 'internvideo-jax[browser]'"
)
CHROMIUM = shutil.which(os.environ.get("IVJ_CHROMIUM", "chromium"))
DRIVER = shutil.which("chromedriver")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(
        not (CHROMIUM and DRIVER), reason="no chromium or no chromedriver; apt install both"
    ),
]
FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in FLAGS:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    service = webdriver.ChromeService(executable_path=DRIVER)
    driver = webdriver.Chrome(options=options, service=service)
    driver.set_window_size(1100, 900)
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def url(answers) -> Iterator[str]:
    with started(Desk(("red", "green", "blue"), "plain", answers)) as client:
        yield f"http://127.0.0.1:{client.port}/"


def until(condition: Callable[[], Any], seconds: float = 20.0) -> Any:
    """The first true value of a condition; fails when there is none in time."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.05)
    return found


def text(browser: Any, selector: str) -> str:
    return browser.find_element("css selector", selector).text


def texts(browser: Any, selector: str) -> list[str]:
    return [found.text for found in browser.find_elements("css selector", selector)]


def opened(browser: Any, url: str) -> None:
    browser.get(url)
    until(lambda: text(browser, "#status").startswith(("Type", "None")))


def ask(browser: Any, query: str) -> None:
    """Types a query and waits for what the page makes of it."""
    box = browser.find_element("css selector", "#query")
    box.clear()
    # Not send_keys: the driver takes no characters outside the basic plane.
    browser.execute_script("arguments[0].value = arguments[1]", box, query)
    browser.execute_script("document.getElementById('status').textContent = 'waiting'")
    box.send_keys("\ue007")  # Enter
    until(lambda: text(browser, "#status") not in ("waiting", "Searching…"))
    # The button comes back a moment after the answer; until then Tab passes it over.
    until(lambda: browser.find_element("css selector", "#search button").is_enabled())


def errors(browser: Any) -> list[str]:
    return [row["message"] for row in browser.get_log("browser") if row["level"] == "SEVERE"]


def test_a_typed_query_ranks_clips_with_bars(browser, url):
    opened(browser, url)
    assert text(browser, "#about") == "4 videos, 4 clips"
    assert browser.switch_to.active_element.get_attribute("id") == "query"
    browser.switch_to.active_element.send_keys("something blue", "\ue007")
    until(lambda: text(browser, "#status") == "4 clips, best first")
    assert texts(browser, "#results .rank") == ["1", "2", "3", "4"]
    assert texts(browser, "#results .file")[0] == "deep/c <b>&.mp4"
    until(lambda: len(texts(browser, ".bars")[0].split("\n")) == 6)
    first = texts(browser, "#results li:first-child .bars .words span")
    assert first[0] == "blue" and float(first[1].rstrip(" %")) > 90
    fill = browser.find_element("css selector", "#results li:first-child .fill")
    bar = browser.find_element("css selector", "#results li:first-child .bars li")
    assert fill.size["width"] > 0.9 * bar.size["width"] > 50
    assert text(browser, "#skipped summary") == "1 files could not be used"
    assert not errors(browser)


def test_a_clip_plays(browser, url):
    opened(browser, url)
    ask(browser, "green")
    video = browser.find_element("css selector", "#results video")
    script = "return [arguments[0].currentTime, arguments[0].readyState, arguments[0].videoWidth]"
    time_, ready, width = until(
        lambda: (
            (found := browser.execute_script(script, video)) and found[0] > 0.05 and found[1] >= 2
            and found
        )
    )  # fmt: skip
    assert (ready, width) >= (2, 80)
    later = until(
        lambda: (found := browser.execute_script(script, video)) and found[0] != time_ and found
    )
    assert later[1] >= 2
    # It starts again at its end, after one second of film.
    before = time_
    until(lambda: browser.execute_script(script, video)[0] < before + 0.6)
    assert not errors(browser)


def test_labels_can_be_edited(browser, url):
    opened(browser, url)
    ask(browser, "red")
    browser.find_element("css selector", "#labelling summary").click()
    field = browser.find_element("css selector", "#labels")
    assert field.get_attribute("value") == "red\ngreen\nblue"
    field.clear()
    field.send_keys("a red thing\nblue <b>bold</b>")
    browser.find_element("css selector", "#label button").click()
    until(lambda: "a red thing" in text(browser, "#results li:first-child .bars"))
    names = texts(browser, "#results li:first-child .bars .words span:first-child")
    assert names == ["a red thing", "blue <b>bold</b>"]
    assert not browser.find_elements("css selector", ".bars b") and not errors(browser)


@pytest.mark.parametrize(
    "query",
    [
        "<img src=x onerror=\"document.title='taken'\"><script>document.title='taken'</script>",
        "red " * 2500,
        "\u202e red \U0001f7e5 \u0000\ufeff",
        "\ud800 red",
    ],
    ids=["html", "long", "unicode", "surrogate"],
)
def test_hostile_queries_do_nothing(browser, url, query):
    opened(browser, url)
    if query.startswith("\ud800"):  # which the driver cannot send
        query = "red"
        browser.execute_script(
            "document.getElementById('search').addEventListener('submit', () => {"
            "document.getElementById('query').value = '\\ud800 red'}, true)"
        )
    ask(browser, query)
    assert text(browser, "#status") == "4 clips, best first"
    assert browser.title == "Video search"
    assert ("cut to the first 1000" in text(browser, "#note")) == (len(query) > 1000)
    assert not browser.find_elements("css selector", "#results script") and not errors(browser)


def test_an_empty_query_asks_for_one(browser, url):
    opened(browser, url)
    ask(browser, "red")
    ask(browser, "   ")
    assert text(browser, "#status") == "Type what should happen in the video."
    assert not texts(browser, "#results li") and not errors(browser)


def test_keys_are_enough(browser, url):
    opened(browser, url)
    ask(browser, "red")
    reached = []
    while "video" not in reached and len(reached) < 12:
        webdriver.ActionChains(browser).send_keys("\ue004").perform()  # Tab
        reached.append(browser.switch_to.active_element.tag_name)
    assert reached == ["button", "summary", "video"]
    webdriver.ActionChains(browser).send_keys("/").perform()
    assert browser.switch_to.active_element.get_attribute("id") == "query"


def test_it_fits_a_phone_and_follows_the_dark(browser, url):
    opened(browser, url)
    light = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": 360, "height": 740, "deviceScaleFactor": 2, "mobile": True},
    )
    browser.execute_cdp_cmd(
        "Emulation.setEmulatedMedia",
        {"features": [{"name": "prefers-color-scheme", "value": "dark"}]},
    )
    try:
        ask(browser, "red")
        width = browser.execute_script("return document.documentElement.scrollWidth")
        dark = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    assert width <= 360 and dark != light


def test_the_page_waits_for_the_index_and_says_what_failed(browser, answers):
    desk = Desk(done=2, total=5)
    with started(desk) as client:
        browser.get(f"http://127.0.0.1:{client.port}/")
        until(lambda: text(browser, "#status") == "Reading the videos: 2 of 5")
        assert not browser.find_element("css selector", "#search button").is_enabled()
        desk.answers = answers
        until(lambda: text(browser, "#about") == "4 videos, 4 clips")
        browser.execute_cdp_cmd("Network.enable", {})
        network = {"latency": 0, "downloadThroughput": -1, "uploadThroughput": -1}
        try:
            browser.execute_cdp_cmd(
                "Network.emulateNetworkConditions", {"offline": True, **network}
            )
            ask(browser, "red")
            assert "the server does not answer" in text(browser, "#problem")
        finally:
            browser.execute_cdp_cmd(
                "Network.emulateNetworkConditions", {"offline": False, **network}
            )
        browser.get_log("browser")  # the failed request is in it
    with started(Desk(error="no weights here")) as client:
        browser.get(f"http://127.0.0.1:{client.port}/")
        until(lambda: text(browser, "#problem") == "no weights here")
    assert not errors(browser)


def test_picture(browser, url, tmp_path):
    """Of a page with answers; where and of what, the environment may say."""
    opened(browser, os.environ.get("IVJ_PAGE", url))
    browser.set_window_size(1000, 820)
    ask(browser, os.environ.get("IVJ_QUERY", "red"))
    until(lambda: texts(browser, ".fill"))
    time.sleep(0.5)  # first frames of the clips
    out = Path(os.environ.get("IVJ_SCREENSHOT", tmp_path / "search.png"))
    assert browser.save_screenshot(str(out)) and out.stat().st_size < 200_000
