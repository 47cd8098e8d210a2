"""Load for the cluster tests, and the judgement over what it was told.

A writer remembers each write with what became of it: acknowledged, refused for certain, or
unknown. Afterwards every acknowledged write must be there, no refused one may be, and nothing may
have been applied twice.
"""

import re
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Literal, Self

from raftkv import Client
from raftkv.client import DefiniteError, RaftkvError
from raftkv.testing import LocalCluster

WRITES_MAX = 20_000
"""Per writer, so that a test that hangs does not fill the disk."""

PROGRESS_S = 30.0
"""How long to wait for the next acknowledged writes: that they come is the point, not when."""

Outcome = Literal["acknowledged", "refused", "unknown"]


def shard_tags(client: Client) -> dict[int, str]:
    """A hash tag for each shard: keys that begin with it live there."""
    shards = {row["shard"] for row in client.shards()["shards"]}
    tags: dict[int, str] = {}
    for number in range(10_000):
        tag = f"{{t{number}}}"
        tags.setdefault(client.explain(tag)["shard"], tag)
        if tags.keys() == shards:
            return dict(sorted(tags.items()))
    raise AssertionError(f"no key of 10,000 lives in {sorted(shards - tags.keys())}")


@dataclass
class Ledger:
    """What one writer knows: of keys written once, and of one key that it wrote over and over."""

    prefix: str
    once: dict[bytes, Outcome] = field(default_factory=dict)
    again: dict[int, Outcome] = field(default_factory=dict)
    acknowledged: int = 0
    errors: list[RaftkvError] = field(default_factory=list)

    @property
    def counter(self) -> bytes:
        """The key that is written over and over, with rising numbers."""
        return f"{self.prefix}counter".encode()

    def note(self, number: int, key: bytes, outcome: Outcome) -> None:
        """Remember a write."""
        if key == self.counter:
            self.again[number] = outcome
        else:
            self.once[key] = outcome
        self.acknowledged += outcome == "acknowledged"

    def faults(self, found: Mapping[bytes, tuple[bytes, int]]) -> list[str]:
        """What is wrong with what was found: key -> (value, version)."""
        faults = []
        for key, outcome in self.once.items():
            if outcome == "acknowledged" and key not in found:
                faults.append(f"lost: {key!r}")
            elif outcome == "refused" and key in found:
                faults.append(f"refused but applied: {key!r}")
            elif key in found and found[key][1] != 1:
                faults.append(f"applied {found[key][1]} times: {key!r}")
        return [*faults, *self._faults_of_counter(*found.get(self.counter, (b"0", 0)))]

    def _faults_of_counter(self, value: bytes, version: int) -> list[str]:
        by_outcome = defaultdict(list)
        for number, outcome in self.again.items():
            by_outcome[outcome].append(number)
        acknowledged, unknown = by_outcome["acknowledged"], by_outcome["unknown"]
        allowed = {max(acknowledged, default=0), *unknown}
        faults = []
        if int(value.rstrip(b".")) not in allowed:
            faults.append(f"{self.counter!r} is {value!r}, not one of {sorted(allowed)}")
        if not len(acknowledged) <= version <= len(acknowledged) + len(unknown):
            faults.append(
                f"{self.counter!r} was written {version} times by {len(acknowledged)} "
                f"acknowledged and {len(unknown)} unknown writes"
            )
        return faults


class Load:
    """Writers in threads, one for each shard, until the block ends.

    ::

        with Load(cluster) as load:
            cluster.kill("n2")
            load.wait_progress()
        load.judge(cluster.client())

    Args:
        cluster: Whose nodes to ask.
        nodes: Ask only these; all by default.
        value_bytes: Size of the values, at least.
        pause_s: Between two writes of a writer.
    """

    def __init__(
        self,
        cluster: LocalCluster,
        *,
        nodes: Sequence[str] | None = None,
        name: str = "load",
        value_bytes: int = 8,
        pause_s: float = 0.002,
    ) -> None:
        self._urls = [cluster.node(node).url for node in nodes or cluster.names]
        self._value_bytes = value_bytes
        self._pause_s = pause_s
        self._stopping = threading.Event()
        with cluster.client() as client:
            tags = shard_tags(client)
        self.ledgers = {shard: Ledger(f"{tag}/{name}/") for shard, tag in tags.items()}
        self._threads = [
            threading.Thread(target=self._write, args=(ledger,), name=f"load {shard}", daemon=True)
            for shard, ledger in self.ledgers.items()
        ]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        self.wait_progress()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Let every writer finish its write."""
        self._stopping.set()
        for thread in self._threads:
            thread.join()

    def _write(self, ledger: Ledger) -> None:
        with Client(self._urls, timeout_s=20) as client:
            for number in range(1, WRITES_MAX):
                if self._stopping.wait(self._pause_s):
                    return
                key = f"{ledger.prefix}{number}".encode() if number % 2 else ledger.counter
                value = str(number).ljust(self._value_bytes, ".")
                outcome: Outcome = "acknowledged"
                try:
                    client.put(key, value)
                except RaftkvError as error:
                    outcome = "refused" if isinstance(error, DefiniteError) else "unknown"
                    ledger.errors.append(error)
                ledger.note(number, key, outcome)

    @property
    def acknowledged(self) -> int:
        """How many writes were."""
        return sum(ledger.acknowledged for ledger in self.ledgers.values())

    @property
    def errors(self) -> list[RaftkvError]:
        """What the writers were told beside acknowledgements."""
        return [error for ledger in self.ledgers.values() for error in ledger.errors]

    def wait_progress(self, writes: int = 10, shards: Sequence[int] | None = None) -> None:
        """Wait until every shard (or each of these) has acknowledged so many more writes."""
        watched = {shard: self.ledgers[shard] for shard in shards or self.ledgers}
        goals = {shard: ledger.acknowledged + writes for shard, ledger in watched.items()}
        deadline = time.monotonic() + PROGRESS_S
        while late := [s for s, ledger in watched.items() if ledger.acknowledged < goals[s]]:
            assert time.monotonic() < deadline, f"no writes to shards {late}: {self.errors[-3:]}"
            time.sleep(0.02)

    def judge(self, client: Client) -> None:
        """Every acknowledged write is there, no refused one is, none was applied twice."""
        assert self.acknowledged
        faults = []
        for ledger in self.ledgers.values():
            entries = client.scan(ledger.prefix, timeout_s=20)
            found = {entry.key: (entry.value, entry.version) for entry in entries}
            faults += ledger.faults(found)
        assert not faults, f"{len(faults)} of {self.acknowledged} writes: {faults[:5]}"


# --- what the nodes say of themselves ---------------------------------------------------------


def status(cluster: LocalCluster) -> dict[int, dict[str, Any]]:
    """Every shard as the cluster sees it."""
    with cluster.client(timeout_s=20) as client:
        return {row["shard"]: row for row in client.status("cluster")["shards"]}


def wait_replicas_agree(cluster: LocalCluster) -> None:
    """All replicas of each shard come to the same entry, and have the same state there."""
    rows: dict[int, dict[str, Any]] = {}

    def caught_up() -> bool:
        rows.update(status(cluster))
        return all(
            set(row["members"]) == set(row["replicas"])
            and len({member["applied_index"] for member in row["members"].values()}) == 1
            for row in rows.values()
        )

    cluster.wait_for(caught_up, "all replicas have applied the same entries")
    for shard, row in rows.items():
        digests = {name: member["digest"] for name, member in row["members"].items()}
        assert len(set(digests.values())) == 1, f"shard {shard}: {digests}"
        assert not row["digest_mismatch"]


_LEADS = re.compile(r"group (\d+)\.\d+, term (\d+): leader\b")


def leaders_by_term(cluster: LocalCluster) -> dict[tuple[int, int], set[str]]:
    """(shard, term) -> who said that it leads, over the nodes' whole logs."""
    leaders = defaultdict(set)
    for name in cluster.names:
        for shard, term in _LEADS.findall(cluster.node(name).log.read_text()):
            leaders[int(shard), int(term)].add(name)
    return leaders


def assert_one_leader_per_term(cluster: LocalCluster) -> None:
    """Election safety (Raft paper, figure 3): what breaks if a vote is forgotten."""
    leaders = leaders_by_term(cluster)
    assert leaders
    assert not {at: names for at, names in leaders.items() if len(names) > 1}


def in_threads(count: int, work: Callable[[int], None]) -> list[threading.Thread]:
    """Start ``work(0)``, ``work(1)``, ... beside the test; join them before its end."""
    threads = [threading.Thread(target=work, args=(n,), daemon=True) for n in range(count)]
    for thread in threads:
        thread.start()
    return threads


def join(threads: Sequence[threading.Thread]) -> None:
    """Wait for their ends."""
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads)


def until(condition: Callable[[], bool], what: str, poll_s: float = 0.02) -> None:
    """Wait for ``condition``."""
    deadline = time.monotonic() + PROGRESS_S
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(poll_s)
