"""A leader that was frozen and woke up after another was elected tells nobody anything untrue."""

import os
import signal
import threading
from dataclasses import dataclass, field

import pytest
import urllib3

from raftkv import Client
from raftkv.client import DefiniteError, RaftkvError
from raftkv.testing import LocalCluster
from tests.cluster.cluster_load import in_threads, join, until, wait_replicas_agree

pytestmark = pytest.mark.cluster

KEY = "paused/register"
ANSWER_S = 15
HASTE_MS = 1000
"""Short enough to run out while the leader is frozen, long enough for it to go on afterwards."""


PATIENT = {"raft": {"election_timeout_ms_min": 500, "election_timeout_ms_max": 5000}}
"""The others elect as soon as the links are lost; a leader takes much longer to lose heart.

So it still believes that it leads when it wakes up, and only a round of its followers can tell.
"""
LOOPS_MAX = 5_000


@dataclass
class Register:
    """One key that a single writer sets to 1, 2, 3, ..., and what readers saw of it.

    A read that begins after a number was acknowledged must see that number or a later one.
    """

    acknowledged: int = 0
    reads: int = 0
    faults: list[str] = field(default_factory=list)
    waiting: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def write(self, client: Client, times: int) -> None:
        """Set it to the next numbers."""
        for number in range(self.acknowledged + 1, self.acknowledged + times + 1):
            client.put(KEY, str(number), timeout_s=20)
            self.acknowledged = number

    def read(self, client: Client) -> bool:
        """Read it and judge what was seen; false if there was no answer."""
        at_least = self.acknowledged
        with self.lock:
            self.waiting += 1
        try:
            entry = client.get(KEY)
        except RaftkvError:
            return False
        finally:
            with self.lock:
                self.waiting -= 1
        seen = 0 if entry is None else int(entry.value)
        with self.lock:
            self.reads += 1
            if seen < at_least:
                self.faults.append(f"saw {seen} after {at_least} was acknowledged")
        return True


@dataclass
class Writes:
    """Writes of keys of their own, sent once each, and what their writers were told."""

    prefix: str
    acknowledged: set[str] = field(default_factory=set)
    refused: set[str] = field(default_factory=set)
    unknown: set[str] = field(default_factory=set)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def write(self, client: Client, name: str) -> None:
        """Write once; the client must not be one that repeats writes."""
        key, told = f"{self.prefix}{name}", self.unknown
        try:
            client.put(key, "v")
            told = self.acknowledged
        except DefiniteError:
            told = self.refused
        except RaftkvError:
            pass  # of unknown outcome, as noted above
        with self.lock:
            told.add(key)

    def write_in_haste(self, url: str, name: str) -> None:
        """Write once, and wait for the server's own word when its time is up."""
        key, told = f"{self.prefix}{name}", self.unknown
        headers = {"Raftkv-Timeout-Ms": str(HASTE_MS)}
        try:
            answer = urllib3.request(
                "PUT", f"{url}/v1/kv/{key}", body=b"v", headers=headers, retries=False, timeout=20
            )
            if answer.status in {200, 201}:
                told = self.acknowledged
            elif answer.json()["definite"]:
                told = self.refused
        except urllib3.exceptions.HTTPError:
            pass  # of unknown outcome, as noted above
        with self.lock:
            told.add(key)


class LoadThrough:
    """Readers and writers that ask one node only, until they are told to stop."""

    def __init__(self, url: str, register: Register, writes: Writes) -> None:
        self._url = url
        self._register = register
        self._writes = writes
        self._stopping = threading.Event()
        self._threads = in_threads(3, self._read) + in_threads(4, self._write)

    def _reader(self) -> Client:
        return Client(self._url, timeout_s=ANSWER_S, attempt_timeout_s=ANSWER_S)

    def _read(self, _: int) -> None:
        with self._reader() as reader:
            for _ in range(LOOPS_MAX):
                if self._stopping.is_set():
                    return
                self._register.read(reader)

    def _write(self, number: int) -> None:
        # The first is answered while the leader is frozen (if its HTTP workers are not), the
        # others wait until it wakes up.
        with Client(self._url, timeout_s=ANSWER_S, idempotent=False) as writer:
            for count in range(LOOPS_MAX):
                if self._stopping.is_set():
                    return
                if number == 0:
                    self._writes.write_in_haste(self._url, f"{number}-{count}")
                else:
                    self._writes.write(writer, f"{number}-{count}")

    def read_until_answered(self, _: int) -> None:
        """One more reader, for one answer."""
        with self._reader() as reader:
            for _ in range(LOOPS_MAX):
                if self._register.read(reader):
                    return

    def wait(self, more: int) -> None:
        """Wait until so many more reads and writes are answered."""
        reads, writes = self._register.reads + more, len(self._writes.acknowledged) + more
        until(
            lambda: self._register.reads > reads and len(self._writes.acknowledged) > writes,
            f"reads and writes through {self._url}",
        )

    def stop(self) -> None:
        """Let everyone finish."""
        self._stopping.set()
        join(self._threads)


def same_shard_prefix(client: Client, shard: int) -> str:
    """A prefix whose keys live in ``shard``."""
    numbers = range(10_000)
    return next(t for n in numbers if client.explain(t := f"{{p{n}}}")["shard"] == shard)


@pytest.mark.raftkv_cluster(options=PATIENT)
@pytest.mark.parametrize("frozen", ["the whole node", "only its engine"])
def test_a_paused_leader_serves_nothing_stale_and_tells_writers_the_truth(
    raftkv_cluster: LocalCluster, frozen: str
) -> None:
    """Reads before, during and after the pause see what was acknowledged before they began.

    The writes that the paused leader held are answered truthfully: a definite refusal was never
    applied, an acknowledged write is there.
    """
    cluster, register = raftkv_cluster, Register()
    client = cluster.client(timeout_s=20)
    register.write(client, 1)
    where = client.explain(KEY)
    leader, pid = where["leader"], cluster.pid(where["leader"])
    writes = Writes(same_shard_prefix(client, where["shard"]))
    others = Client(
        [cluster.node(name).url for name in cluster.names if name != leader], timeout_s=20
    )
    send = os.killpg if frozen == "the whole node" else os.kill

    load = LoadThrough(cluster.node(leader).url, register, writes)
    load.wait(more=30)
    send(pid, signal.SIGSTOP)
    try:
        register.write(others, 10)
        assert others.explain(KEY)["leader"] != leader
        during = in_threads(4, load.read_until_answered)
        until(lambda: register.waiting >= 3 + len(during), "reads wait for the frozen leader")
        if frozen == "only its engine":
            until(lambda: bool(writes.unknown | writes.refused), "a writer is told something")
        register.write(others, 5)
    finally:
        send(pid, signal.SIGCONT)
    join(during)
    register.write(others, 10)
    load.wait(more=10)
    load.stop()

    wait_replicas_agree(cluster)
    there = {entry.key.decode() for entry in client.scan(writes.prefix, keys_only=True)}
    assert not register.faults
    assert writes.acknowledged <= there, "an acknowledged write is lost"
    assert not writes.refused & there, "a definite refusal was applied"
    assert there <= writes.acknowledged | writes.unknown
