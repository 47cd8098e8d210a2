"""A node that forwards, dies and comes back is answered only what it asked in this life."""

import time
from collections import Counter
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest
import urllib3

from raftkv.testing import LocalCluster
from tests.cluster.cluster_load import until

pytestmark = pytest.mark.cluster

WRITES = 40
"""Forwarded in each life of the node."""

ROUNDS = 2
TRIES_MAX = 5
"""Of a round: a busy machine may take so long that the frozen leader's link is given up first."""

LINK_KEPT_S = 0.8
"""A link to a frozen node is given up after a second."""

POLL_S = 0.01


class Nodes:
    """A leader that is frozen again and again, a node that forwards to it, and a dead one."""

    def __init__(self, cluster: LocalCluster, pool: ThreadPoolExecutor) -> None:
        leader = cluster.leader_of(0)
        assert leader is not None
        self.leader = leader
        self.forwarder, dead = (name for name in cluster.names if name != leader)
        self._cluster = cluster
        self._pool = pool
        cluster.kill(dead)

    def begin_a_life(self) -> None:
        """Start the forwarder anew, and wait until it forwards.

        It has forwarded next to nothing in this life, as in the one that will follow it.
        """
        self._cluster.kill(self.forwarder)
        self._cluster.start_node(self.forwarder)
        until(lambda: self.put("warm", {}) in {200, 201}, "the forwarder writes")

    def facts(self, name: str) -> dict[str, Any]:
        """What a node says of itself."""
        url = f"{self._cluster.node(name).url}/v1/status"
        facts: dict[str, Any] = urllib3.request("GET", url, retries=False, timeout=20).json()
        return facts

    def put(self, key: str, headers: dict[str, str]) -> int | None:
        """Put through the forwarder; the status, None if its connection broke."""
        url = f"{self._cluster.node(self.forwarder).url}/v1/kv/{key}"
        patient = {"Raftkv-Timeout-Ms": "30000", **headers}
        try:
            answer = urllib3.request(
                "PUT", url, body=b"v", headers=patient, retries=False, timeout=60
            )
        except urllib3.exceptions.HTTPError:
            return None
        return answer.status

    def put_many(self, prefix: str, headers: dict[str, str]) -> list[Future[int | None]]:
        """Put ``prefix-0``, ``prefix-1``, ... at once."""
        return [self._pool.submit(self.put, f"{prefix}-{i}", headers) for i in range(WRITES)]

    def routed(self) -> int:
        """Requests that the forwarder has not seen answered."""
        return int(self.facts(self.forwarder)["metrics"]["routed_in_flight"])

    def waiting(self) -> int:
        """Writes that the leader holds."""
        return int(self.facts(self.leader)["metrics"]["waiting_operations"])

    def leave_writes_at_the_leader(self, prefix: str) -> bool:
        """Forward writes to the frozen leader, kill the forwarder, and let the leader take them.

        False if the forwarder gave the link up before it had forwarded any.
        """
        self._cluster.pause(self.leader)
        frozen_at = time.monotonic()
        asked = self.put_many(prefix, {})
        while self.routed() < WRITES // 2 and time.monotonic() - frozen_at < LINK_KEPT_S:
            time.sleep(POLL_S)
        in_time = time.monotonic() - frozen_at < LINK_KEPT_S
        self._cluster.kill(self.forwarder)
        self._cluster.resume(self.leader)
        for answer in asked:
            assert answer.result() is None, "the forwarder answered a write that nobody committed"
        if in_time:
            until(lambda: self.waiting() > 0, "the leader holds writes that it cannot commit")
        return in_time

    def come_back(self, prefix: str) -> Counter[int | None]:
        """Start the forwarder again, and ask it what cannot succeed before the leader goes on."""
        self._cluster.pause(self.leader)
        self._cluster.start_node(self.forwarder)
        until(self.accepts, "the forwarder takes connections")
        asked = self.put_many(prefix, {"If-Match": '"12345"'})
        until(lambda: self.routed() >= WRITES, "the forwarder holds the writes of its new life")
        self._cluster.resume(self.leader)
        return Counter(answer.result() for answer in asked)

    def accepts(self) -> bool:
        """Whether the forwarder answers, ready or not."""
        try:
            return bool(self.facts(self.forwarder))
        except urllib3.exceptions.HTTPError:
            return False


@pytest.mark.raftkv_cluster(shards=1)
def test_a_forwarder_that_came_back_acknowledges_nothing_of_its_last_life(
    raftkv_cluster: LocalCluster,
) -> None:
    """Of the conditional puts of its new life, which cannot succeed, each is refused.

    The leader commits the writes of the last life while it holds those of the new one.
    """
    client = raftkv_cluster.client(timeout_s=20)
    with ThreadPoolExecutor(WRITES) as pool:
        nodes, done = Nodes(raftkv_cluster, pool), 0
        for number in range(ROUNDS * TRIES_MAX):
            nodes.begin_a_life()
            left = nodes.leave_writes_at_the_leader(f"old-{number}")
            assert nodes.come_back(f"new-{number}") == {412: WRITES}
            if left:
                committed = list(client.scan(f"old-{number}-", keys_only=True))
                assert committed, "the leader committed what it held of the last life"
                done += 1
            if done == ROUNDS:
                break
    assert done == ROUNDS
