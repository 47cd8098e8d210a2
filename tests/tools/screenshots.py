"""Takes the screenshots in docs/images/: a real cluster under a little load, in Chromium.

    python tests/tools/screenshots.py

Each picture is a promise of the text beside it, so look at them before you commit them.
"""

import tempfile
import time
from pathlib import Path

from raftkv import Client
from raftkv.bench.load.paced import PacedWriter, numbered_keys
from raftkv.testing import LocalCluster
from raftkv.testing.layout import Options
from tests.support.browser import DESKTOP, PHONE, Browser, chromium

IMAGES = Path(__file__).resolve().parents[2] / "docs" / "images"
WRITES_PER_S = 80.0
HISTORY_S = 60
"""So long there is load before the first picture, for the sparklines and the hot keys."""
HOT_KEY = "cart:7"
HOT_READS_PER_S = 60
OPTIONS: Options = {"limits": {"snapshot_after_entries": 600}, "log": {"slow_request_ms": 50}}


def main() -> None:
    """Take all of them."""
    IMAGES.mkdir(exist_ok=True)
    with (
        tempfile.TemporaryDirectory() as profile,
        LocalCluster(nodes=3, shards=4, options=OPTIONS) as cluster,
        PacedWriter(cluster.urls, numbered_keys(b"cart:"), b"x" * 200, per_s=WRITES_PER_S),
        chromium(Path(profile)) as browser,
    ):
        url = cluster.urls[0]
        load(cluster)
        take(browser, url, "overview")
        take(browser, url + "/shards/0", "shard")
        take(browser, url + "/nodes/n1", "node")
        take(browser, url + "/ring", "ring")
        take(browser, url + f"/explain/{HOT_KEY}", "explain-dark", dark=True)
        cluster.kill("n3")
        take(browser, url, "degraded-dark", dark=True, expect="n3 does not answer")
        cluster.kill("n2")
        take(browser, url, "unavailable-phone", size=PHONE, expect="have no quorum")


def load(cluster: LocalCluster) -> None:
    """Read one key more often than any other and hand a leadership over."""
    with Client(cluster.urls[0]) as client:
        for second in range(HISTORY_S):
            began = time.monotonic()
            for _ in range(HOT_READS_PER_S):
                client.get(HOT_KEY)
            if second == HISTORY_S // 2:
                client.transfer_leader(3, "n3")
            time.sleep(max(0.0, began + 1 - time.monotonic()))


def take(
    browser: Browser,
    url: str,
    name: str,
    *,
    dark: bool = False,
    size: tuple[int, int] = DESKTOP,
    expect: str = "Live.",
) -> None:
    """Open a page, wait until it says what it should, and keep what is seen."""
    browser.look(dark=dark, size=size)
    browser.open(url)
    browser.wait(lambda: expect in browser.text())
    (IMAGES / f"raftkv-{name}.png").write_bytes(browser.driver.get_screenshot_as_png())


if __name__ == "__main__":
    main()
