"""SIGHUP: a running node reads certificates, tokens and the log's settings again."""

import hashlib
import os
import signal
from pathlib import Path

import pytest
import urllib3

from raftkv.testing import LocalCluster

pytestmark = pytest.mark.cluster

TOKEN = "a token that is long enough"
LINES = f"""
[[security.tokens]]
name = "ops"
role = "admin"
sha256 = "{hashlib.sha256(TOKEN.encode()).hexdigest()}"
"""


def status_of(cluster: LocalCluster, token: str | None = None) -> int:
    """What a read is answered with."""
    headers = {} if token is None else {"authorization": f"Bearer {token}"}
    url = f"{cluster.urls[0]}/v1/kv/k"
    return urllib3.request("GET", url, headers=headers, retries=False, timeout=10).status


def test_a_running_node_takes_over_tokens_and_the_log(tmp_path: Path) -> None:
    """No request fails meanwhile; what is bad changes nothing; the engine goes on."""
    with LocalCluster(tmp_path / "c", nodes=1, shards=1) as cluster:
        assert status_of(cluster) == 404
        file, pid = cluster.node("n1").config, cluster.pid("n1")
        before = file.read_text()
        file.write_text(before + LINES)
        os.kill(pid, signal.SIGHUP)
        statuses: list[int] = []

        def refuses_strangers() -> bool:
            statuses.append(status_of(cluster))
            return statuses[-1] == 401

        cluster.wait_for(refuses_strangers, "tokens are asked for")
        assert set(statuses) <= {404, 401}
        assert status_of(cluster, TOKEN) == 404
        assert "reread the configuration: security.tokens" in cluster.logs()["n1"]

        file.write_text("no TOML at all")
        os.kill(pid, signal.SIGHUP)
        cluster.wait_for(
            lambda: "nothing was taken over from the configuration" in cluster.logs()["n1"],
            "what is bad is said",
        )
        assert status_of(cluster, TOKEN) == 404
        assert status_of(cluster) == 401
        file.write_text(before + LINES)
        assert cluster.pid("n1") == pid


def test_an_insecure_node_says_so(tmp_path: Path) -> None:
    """It is the one option that lifts the refusals, and may be left over from a trial."""
    with LocalCluster(tmp_path / "c", nodes=1, shards=1) as cluster:
        cluster.stop_node("n1")
        assert "security.insecure" not in cluster.logs()["n1"]
        file = cluster.node("n1").config
        file.write_text(file.read_text().replace("[security]", "[security]\ninsecure = true"))
        cluster.start_node("n1")
        cluster.wait_ready()
        assert "WARNING raftkv.engine.node: security.insecure = true" in cluster.logs()["n1"]
