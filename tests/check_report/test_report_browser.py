"""The report in a browser, opened as a file: its script draws, jumps, and runs nothing else."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import WebDriverWait

from raftkv.check.report import write_report
from raftkv.check.report.embedded import NEAR_MAX
from raftkv.check.verdict import Verdict
from tests.check_report.report_histories import (
    FACTS,
    HOSTILE,
    Run,
    hostile_run,
    judged,
    operation,
    run,
)

T = TypeVar("T")

WAIT_S = 30.0
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=1200,900",
)


def tool(name: str) -> str:
    """Return where a program is; without it these tests fail, as skipped they would say nothing."""
    path = shutil.which(name)
    if path is None:
        pytest.fail(f"{name} is missing: run tests/install-tools")
    return path


class Browser:
    """A page in a browser, and what is asked of it."""

    def __init__(self, driver: webdriver.Chrome) -> None:
        self.driver: Any = driver  # its types differ from version to version

    def open(self, path: Path) -> None:
        """Open a file and wait until its lanes are drawn."""
        self.driver.get_log("browser")
        self.driver.get(path.as_uri())
        self.wait(lambda: self.all("#lanes svg"))

    def all(self, selector: str) -> list[WebElement]:
        """Return the elements that a selector matches now."""
        found: list[WebElement] = self.driver.find_elements(By.CSS_SELECTOR, selector)
        return found

    def one(self, selector: str) -> WebElement:
        """Return the only element that a selector matches."""
        (found,) = self.all(selector)
        return found

    def run(self, script: str, *arguments: object) -> Any:
        """Return what a script in the page returns."""
        return self.driver.execute_script(script, *arguments)

    def wait(self, condition: Callable[[], T]) -> T:
        """Wait for a condition to be true."""
        return WebDriverWait(self.driver, WAIT_S).until(lambda _: condition())

    def settle(self) -> None:
        """Wait until what was asked for is drawn: drawing happens once a frame."""
        self.driver.execute_async_script(
            "const done = arguments[0];"
            "requestAnimationFrame(() => requestAnimationFrame(() => requestAnimationFrame(done)))"
        )

    def click(self, selector: str) -> None:
        """Click an element and wait for what follows."""
        self.one(selector).click()
        self.settle()

    def bars(self) -> set[int]:
        """Return the operations that are drawn."""
        found: list[str] = self.run(
            "return [...document.querySelectorAll('.bar')].map(bar => bar.dataset.index)"
        )
        return {int(index) for index in found}

    def details(self) -> dict[str, str]:
        """Return what is told of the selected operation."""
        names, told = self.all("#detail dt"), self.all("#detail dd")
        return {name.text: text.text for name, text in zip(names, told, strict=True)}

    def complaints(self) -> list[str]:
        """Return what the console has said since the page was opened."""
        found: list[dict[str, str]] = self.driver.get_log("browser")
        return [entry["message"] for entry in found]


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """Chromium without a window, with a profile of its own."""
    options = webdriver.ChromeOptions()
    options.binary_location = tool("chromium")
    for flag in FLAGS:
        options.add_argument(flag)
    options.add_argument(f"--user-data-dir={tmp_path_factory.mktemp('profile')}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(tool("chromedriver")))
    try:
        yield Browser(driver)
    finally:
        driver.quit()


@pytest.fixture(scope="module")
def broken() -> Run:
    """A run whose first key has a stale read."""
    return run(stale_read=True)


@pytest.fixture
def report(browser: Browser, broken: Run, tmp_path: Path) -> Browser:
    """Its report, opened."""
    path = tmp_path / "report.html"
    write_report(path, broken.operations, broken.result, events=broken.events, facts=FACTS)
    browser.open(path)
    return browser


def test_a_page_opens_without_a_complaint(report: Browser) -> None:
    """The script runs under the page's own policy, and the first key is the violating one."""
    assert (
        report.one("#part")
        .find_element(By.CSS_SELECTOR, "option:checked")
        .text.startswith("key-0 (violation")
    )
    assert report.bars()
    assert report.complaints() == []


def test_the_jump_leads_to_the_first_offending_operation(report: Browser, broken: Run) -> None:
    """From another key and far away: it is drawn, highlighted, in sight, and told in full."""
    offending = broken.result.parts[0].offending
    report.run("document.querySelector('#part').value = '3'")
    report.run("document.querySelector('#part').dispatchEvent(new Event('change'))")
    report.settle()
    assert offending not in report.bars()
    report.click("a.jump")
    bar = report.one(".bar.highlighted")
    assert bar.get_attribute("data-index") == str(offending)
    assert "offending" in (bar.get_attribute("class") or "").split()
    top, bottom, height = report.run(
        "const box = arguments[0].getBoundingClientRect();"
        "return [box.top, box.bottom, window.innerHeight]",
        bar,
    )
    assert 0 <= top < bottom <= height
    told = report.details()
    assert (
        told["operation"] == f"#{offending} by process {broken.operations[offending or 0].process}"
    )
    assert told["result"] == '"v8"'
    assert told["place"] == "✗ the first that could not be placed"
    assert report.complaints() == []


def test_the_jump_scrolls_to_the_lane(browser: Browser, tmp_path: Path) -> None:
    """With more processes than fit, the offending operation is within what is seen of the lanes."""
    operations = [operation(at, process=at) for at in range(80)]
    path = tmp_path / "wide.html"
    write_report(path, operations, judged(operations, Verdict.VIOLATION, 75))
    browser.open(path)
    browser.click("a.jump")
    seen = browser.run(
        "const [bar, lanes] = arguments;"
        "const inner = bar.getBoundingClientRect(), outer = lanes.getBoundingClientRect();"
        "return outer.top <= inner.top && inner.bottom <= outer.bottom",
        browser.one(".bar.highlighted"),
        browser.one("#lanes"),
    )
    assert seen is True


def test_the_longest_order_is_drawn_as_numbered_points(report: Browser, broken: Run) -> None:
    """Places before the offending operation are in sight, and go no further than what was found."""
    report.click("a.jump")
    places = [int(text.text) for text in report.all("#lanes .place")]
    last = len(broken.result.parts[0].linearization)
    assert max(places) == last
    assert len(report.all("#lanes .point")) >= len(places) > 3
    assert len(report.all("#lanes .order")) == 1


def test_zoom_and_pan_change_what_is_drawn(report: Browser) -> None:
    """Everything, half of it, and the half beside that; bars out of the window are not made."""
    report.click("#all")
    everything = report.bars()
    assert len(everything) == 375
    report.click("#closer")
    nearer = report.bars()
    assert nearer < everything
    report.click("#later")
    assert report.bars() - nearer
    report.one("#lanes").send_keys("0")
    report.settle()
    assert report.bars() == everything


def test_dragging_moves_the_window(report: Browser) -> None:
    """What is dragged to the right shows what was earlier."""
    before = min(report.bars())
    lanes = report.one("#lanes")
    actions = webdriver.ActionChains(report.driver)
    actions.move_to_element(lanes).click_and_hold().move_by_offset(300, 0).release().perform()
    report.settle()
    assert min(report.bars()) < before


def test_an_operation_that_is_clicked_is_told_in_full(report: Browser, broken: Run) -> None:
    """Hovering tells it too; the buttons go on to the next by invocation."""
    report.click("a.jump")
    bar = report.all(".bar.ok:not(.offending)")[0]
    index = int(bar.get_attribute("data-index") or "")
    webdriver.ActionChains(report.driver).move_to_element(bar).perform()
    report.wait(lambda: report.one("#tip").is_displayed())
    assert f"#{index} by process" in report.one("#tip").text
    bar.click()
    report.settle()
    assert report.details()["operation"].startswith(f"#{index} ")
    report.click("#next")
    following = next(o.index for o in broken.operations[index + 1 :] if o.key == "key-0")
    assert report.details()["operation"].startswith(f"#{following} ")


def test_unknown_operations_fade(report: Browser, broken: Run) -> None:
    """Their bars have no end, because they may take effect at any later time."""
    report.click("#all")
    unknown = {o.index for o in broken.operations if o.key == "key-0" and o.status == "info"}
    fading = {int(bar.get_attribute("data-index") or "") for bar in report.all(".bar.info")}
    assert fading == unknown
    assert "fading" in report.all(".bar.info")[0].value_of_css_property("fill")


def test_a_click_on_the_timeline_shows_that_moment(report: Browser, broken: Run) -> None:
    """The picture above and the lanes below have one time."""
    chart = report.one("#timeline-chart")
    report.run("arguments[0].scrollIntoView({block: 'center'})", chart)
    webdriver.ActionChains(report.driver).move_to_element(chart).click().perform()
    report.settle()
    begin = broken.operations[0].invoked_ns
    moments = [(broken.operations[index].invoked_ns - begin) / 1e9 for index in report.bars()]
    # The middle of the picture is a little left of the middle of the run, which lasts 62 s.
    assert 26 < sum(moments) / len(moments) < 32


def test_a_history_without_times_has_lanes_too(browser: Browser, tmp_path: Path) -> None:
    """Their axis counts places, and nothing misses the timeline that is not there."""
    operations = [
        operation(at, process=at % 3, invoked_ns=2 * at, completed_ns=2 * at + 3)
        for at in range(30)
    ]
    path = tmp_path / "order.html"
    write_report(path, operations, judged(operations, Verdict.VIOLATION, 20))
    browser.open(path)
    browser.click("a.jump")
    assert browser.details()["from"] == "40"
    ticks = [text.text for text in browser.all("#lanes .axis .middle")]
    assert ticks
    assert all(tick.isdigit() for tick in ticks)
    assert browser.complaints() == []


def test_text_from_the_history_never_runs(browser: Browser, tmp_path: Path) -> None:
    """Opened, jumped through and hovered over, hostile text makes no element and no complaint."""
    made = hostile_run(HOSTILE)
    path = tmp_path / "hostile.html"
    write_report(
        path,
        made.operations,
        made.result,
        events=made.events,
        title=HOSTILE,
        facts={HOSTILE: HOSTILE},
    )
    browser.open(path)
    browser.click("a.jump")
    webdriver.ActionChains(browser.driver).move_to_element(browser.one(".highlighted")).perform()
    browser.wait(lambda: browser.one("#tip").is_displayed())
    assert "<img src=x" in browser.one("#tip").text
    assert "<img src=x" in browser.details()["call"]
    assert browser.all("img") == []
    assert browser.complaints() == []


def test_a_long_history_is_drawn_whole(browser: Browser, tmp_path: Path) -> None:
    """All that a page carries of a hot key can be seen at once."""
    made = run(operations=40_000, keys=1, processes=40, stale_read=True)
    path = tmp_path / "large.html"
    write_report(path, made.operations, made.result, events=made.events)
    browser.open(path)
    browser.click("#all")
    assert len(browser.bars()) == NEAR_MAX
    assert browser.complaints() == []


def test_a_narrow_screen_needs_no_sideways_scrolling(report: Browser) -> None:
    """On a telephone only tables and the timeline scroll, by themselves."""
    size = {"width": 390, "height": 800, "deviceScaleFactor": 1, "mobile": True}
    report.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    try:
        report.settle()
        assert report.run("return document.documentElement.scrollWidth") <= 390
    finally:
        report.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
