"""A node of real processes that was set up with another map: it never joins, and all say why."""

import json
import re
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from raftkv.testing import LocalCluster

pytestmark = pytest.mark.cluster


SMALL = {"limits": {"wal_segment_bytes": 2**20}}


def ask(url: str, method: str = "GET", body: bytes | None = None) -> tuple[int, Any]:
    """Return the status and the body of an answer, whatever it says."""
    request = urllib.request.Request(url, body, method=method)  # noqa: S310 -- http, to ourselves
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:  # noqa: S310 -- the same
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read()


def facts(url: str) -> Any:
    """Return what a node tells of the cluster."""
    status, body = ask(f"{url}/v1/status?scope=cluster")
    assert status == 200
    return json.loads(body)


@pytest.mark.parametrize(("option", "wrong", "right"), [("replicas", 1, 3), ("shards", 5, 4)])
def test_an_odd_node_never_joins_and_says_why(
    option: str, wrong: int, right: int, tmp_path: Path
) -> None:
    """It acknowledges and reads nothing; status, page, readiness, metrics and log tell of it."""
    cluster = LocalCluster(tmp_path / "cluster", nodes=3, shards=4, replicas=3, options=SMALL)
    cluster.prepare()
    odd = cluster.node("n3")
    line = f"{option} = {right}\n"
    text = odd.config.read_text()
    assert line in text
    odd.config.write_text(text.replace(line, f"{option} = {wrong}\n"))
    try:
        for name in cluster.names:
            cluster.start_node(name)
        cluster.wait_ready(only=("n1", "n2"))
        differs = rf"cluster\.{option} is {right} there and {wrong} here"
        cluster.wait_for(
            lambda: "serves nothing" in odd.log.read_text(), "n3 to have met both others"
        )
        one = cluster.node("n1")
        for number in range(20):
            key = f"v1/kv/key{number}"
            assert ask(f"{one.url}/{key}", "PUT", b"value")[0] == 201
            for query, method, body in (
                ("", "PUT", b"lost"),
                ("", "GET", None),
                ("?consistency=stale", "GET", None),
            ):
                status, refused = ask(f"{odd.url}/{key}{query}", method, body)
                problem = json.loads(refused)
                assert (status, problem["definite"]) == (503, True)
                assert re.search(differs, problem["detail"])
            assert ask(f"{one.url}/{key}") == (200, b"value")
        told, own = facts(one.url), facts(odd.url)
        (row,) = [node for node in told["nodes"] if node["name"] == "n3"]
        assert f"cluster.{option} is {wrong} there and {right} here" in row["refused"]
        assert any("link to n3 is refused" in reason for reason in told["health"]["reasons"])
        assert own["health"]["state"] == "unavailable"
        assert any(reason.startswith("n3 serves nothing") for reason in own["health"]["reasons"])
        assert b"refused" in ask(f"{one.url}/nodes/n3")[1]
        assert b"It serves nothing" in ask(f"{odd.url}/nodes/n3")[1]
        status, ready = ask(f"{odd.url}/readyz")
        assert status == 503
        assert b"cluster map" in ready
        assert b'raftkv_peer_refused{peer="n3"} 1.0' in ask(f"{one.url}/metrics")[1]
        for name in ("n1", "n2"):
            said = cluster.node(name).log.read_text().count("peer n3: differs")
            assert said == 1, name
    finally:
        cluster.stop()
