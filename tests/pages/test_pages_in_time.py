"""Within a second every page of a real node is there, whatever has become of its peers.

The figure is the issue's: a promise to operators, who ask exactly then.
"""

import os
import signal
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import pytest

from raftkv.testing import LocalCluster
from raftkv.web.ops.shared_facts import KEEP_S

pytestmark = pytest.mark.cluster

PAGES = ("/", "/shards/0", "/nodes/n2", "/ring", "/explain/a")
FACTS = ("/v1/status", "/v1/status?scope=cluster", "/v1/explain/a")
SOON_S = 1.0
SILENCE_NOTICED_S = 1.5
"""A node whose own engine hangs: about one second, and no multiple of it."""


class Answer(NamedTuple):
    """What came of one request, and after how many seconds."""

    path: str
    status: int
    text: str
    took_s: float


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    """Three nodes, two shards; the tests look at n1."""
    with LocalCluster(nodes=3, shards=2) as started:
        ask(started, [*PAGES, *FACTS])  # templates are compiled when they are first used
        yield started


@pytest.fixture(autouse=True)
def ready(cluster: LocalCluster) -> None:
    """Begin each test with all nodes, and with no page that was made before."""
    cluster.wait_ready()
    time.sleep(KEEP_S)


def ask(cluster: LocalCluster, paths: Sequence[str]) -> list[Answer]:
    """Ask n1 for all of these at once, as operators in an incident do."""

    def one(path: str) -> Answer:
        began = time.monotonic()
        try:
            with urllib.request.urlopen(cluster.node("n1").url + path, timeout=10) as got:  # noqa: S310
                status, body = got.status, got.read()
        except urllib.error.HTTPError as error:
            with error:
                status, body = error.code, error.read()
        return Answer(path, status, body.decode(), time.monotonic() - began)

    with ThreadPoolExecutor(len(paths)) as pool:
        return list(pool.map(one, paths))


def links(cluster: LocalCluster) -> list[str]:
    """The peers that n1 still takes to be connected."""
    (status,) = ask(cluster, ["/v1/status"])
    return [name for name in ("n2", "n3") if f'"name":"{name}","connected":true' in status.text]


@pytest.fixture(params=["killed", "frozen", "frozen for long"])
def alone(ready: None, cluster: LocalCluster, request: pytest.FixtureRequest) -> Iterator[None]:
    """Both peers of n1 are gone; a frozen one's connections stand until it is missed."""
    gone: Callable[[str], None] = cluster.kill if request.param == "killed" else cluster.pause
    back = cluster.start_node if request.param == "killed" else cluster.resume
    for name in ("n2", "n3"):
        gone(name)
    if request.param != "frozen":
        cluster.wait_for(lambda: not links(cluster), "the links to be given up")
    yield
    for name in ("n2", "n3"):
        back(name)


@pytest.mark.usefixtures("alone")
def test_without_any_peer(cluster: LocalCluster) -> None:
    """They are complete, and name who could not be asked."""
    for answer in ask(cluster, [*PAGES, *FACTS]):
        assert answer.status == 200, answer
        assert answer.took_s < SOON_S, answer.path
        if answer.path in PAGES:
            assert "not answering: n2, n3" in answer.text


def test_with_a_hung_engine(cluster: LocalCluster) -> None:
    """The node's own HTTP workers say so, in the page as in the facts, and wait for it once."""
    os.kill(cluster.pid("n1"), signal.SIGSTOP)
    try:
        answers = ask(cluster, [*PAGES, *FACTS])
    finally:
        os.kill(cluster.pid("n1"), signal.SIGCONT)
    for answer in answers:
        assert answer.status == (503 if answer.path in PAGES else 504), answer
        assert answer.took_s < SILENCE_NOTICED_S, answer.path
        if answer.path in PAGES:
            assert "The engine of n1 does not answer." in answer.text
