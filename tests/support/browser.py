"""Chromium without a window, and what the tests of the pages ask of it."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

T = TypeVar("T")

WAIT_S = 20.0
PHONE = (390, 844)
DESKTOP = (1200, 900)
AXE = Path(__file__).parents[2] / "build/tools/node_modules/axe-core/axe.min.js"
_FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--hide-scrollbars",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


def tool(name: str) -> str:
    """Return where a program is; without it these tests fail, as skipped they would say nothing."""
    path = shutil.which(name)
    if path is None:
        pytest.fail(f"{name} is missing: run tests/install-tools")
    return path


class Browser:
    """One page at a time."""

    def __init__(self, driver: webdriver.Chrome) -> None:
        self.driver: Any = driver  # its types differ from version to version

    def look(
        self, *, dark: bool = False, size: tuple[int, int] = DESKTOP, script: bool = True
    ) -> None:
        """Be another device: its colours, its width, and whether it runs scripts."""
        scheme = "dark" if dark else "light"
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self._cdp("Emulation.setEmulatedMedia", features=features)
        width, height = size
        self._cdp(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=size == PHONE,
        )
        self._cdp("Emulation.setScriptExecutionDisabled", value=not script)

    def _cdp(self, command: str, **parameters: object) -> None:
        self.driver.execute_cdp_cmd(command, parameters)

    def open(self, url: str) -> None:
        """Open a page and forget what the console said before."""
        self.driver.get_log("browser")
        self.driver.get(url)

    def text(self, selector: str = "main") -> str:
        """Return what is read in the first element that a selector matches; nothing without it."""
        found: str | None = self.run(
            "return document.querySelector(arguments[0])?.innerText", selector
        )
        return found or ""

    def plain_text(self, selector: str = "main") -> str:
        """Return the same without running a script."""
        return str(self.driver.find_element(By.CSS_SELECTOR, selector).text)

    def run(self, script: str, *arguments: object) -> Any:
        """Return what a script in the page returns."""
        return self.driver.execute_script(script, *arguments)

    def click(self, selector: str) -> None:
        """Click the element that a selector matches."""
        self.driver.find_element(By.CSS_SELECTOR, selector).click()

    def wait(self, condition: Callable[[], T]) -> T:
        """Wait for a condition to be true."""
        return WebDriverWait(self.driver, WAIT_S, poll_frequency=0.05).until(lambda _: condition())

    def violations(self) -> list[str]:
        """Return what axe-core has to object to, once nothing moves or fades in any more."""
        if not AXE.exists():
            pytest.fail(f"{AXE} is missing: run tests/install-tools")
        self.run(AXE.read_text(encoding="utf-8"))
        found: dict[str, Any] = self.driver.execute_async_script(
            "const done = arguments[0];"
            "Promise.all(document.getAnimations().map(animation => animation.finished))"
            ".then(() => axe.run())"
            ".then(done, error => done({violations: [], broken: String(error)}))"
        )
        assert "broken" not in found, found
        assert found["passes"], "axe-core has looked at nothing"
        return [
            f"{rule['id']}: {node['html'][:200]}"
            for rule in found["violations"]
            for node in rule["nodes"]
        ]

    def complaints(self) -> list[str]:
        """Return what the console has said since the page was opened."""
        found: list[dict[str, str]] = self.driver.get_log("browser")
        return [entry["message"] for entry in found]


@contextmanager
def chromium(profile: Path, *flags: str) -> Iterator[Browser]:
    """A browser with a profile of its own."""
    options = webdriver.ChromeOptions()
    options.binary_location = tool("chromium")
    for flag in (*_FLAGS, f"--user-data-dir={profile}", *flags):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(tool("chromedriver")))
    try:
        yield Browser(driver)
    finally:
        driver.quit()
