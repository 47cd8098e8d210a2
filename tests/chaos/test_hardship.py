"""The judgement of the hour of hardship: a broken promise is called broken, a kept one is not."""

from collections import Counter
from typing import Any

import pytest

from raftkv.check.event import Event
from raftkv.check.history import pair
from raftkv.client.answers import Answer
from tests.chaos.memory_store import MemoryStore
from tests.tools import hardship
from tests.tools.hardship import PaddedStore, TornValueError, Watch, code_of
from tests.tools.hardship_evidence import Evidence, alarms, broken, longest_wait_s, table
from tests.tools.hardships import STAGES

MIB = 2**20


def kept(**changes: Any) -> Evidence:
    """A stage in which all promises were kept, but for the changes."""
    evidence = Evidence(
        "full disk",
        timeout_s=10.0,
        seconds=60.0,
        ok=100,
        refused=5,
        unknown=2,
        longest_wait_s=10.1,
        errors=Counter(DiskFullError=5, UnknownOutcomeError=2),
        answers=Counter({(200, ""): 100, (507, "disk_full"): 5, (504, "unknown"): 2}),
        hardships=Counter({"one": 3}),
        memory={"engine": (50 * MIB, 500 * MIB)},
    )
    for name, value in changes.items():
        setattr(evidence, name, value)
    return evidence


def test_a_stage_of_answers_refusals_and_unknown_outcomes_has_kept_its_promises() -> None:
    """Also with a client that has waited for its whole time-out."""
    assert broken(kept()) == []
    assert "kept |" in table([kept()])


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"ok": 0}, "no request was answered"),
        ({"longest_wait_s": 60.0}, "a request took 60.0 s of 10 s"),
        ({"errors": Counter(ServerError=1)}, "1 requests ended with ServerError"),
        ({"errors": Counter(TornValueError=1)}, "1 requests ended with TornValueError"),
        ({"errors": Counter(TooLargeError=2)}, "2 requests ended with TooLargeError"),
        ({"answers": Counter({(500, "internal"): 3})}, "3 times a node answered 500 internal"),
        ({"answers": Counter({(502, "unknown"): 1})}, "1 times a node answered 502 unknown"),
        (
            {"answers": Counter({(503, ""): 1})},
            "1 times a node answered 503 without a problem document",
        ),
        ({"answers": Counter({(200, "internal"): 1})}, "1 times a node answered 200 internal"),
        ({"hardships": Counter(all=0)}, "all was never seen to take effect"),
        ({"memory": {"worker": (600 * MIB, 500 * MIB)}}, "a worker took 600 MiB of 500"),
        ({"findings": ["n1 has ended"]}, "n1 has ended"),
    ],
)
def test_a_broken_promise_is_called_broken(changes: dict[str, Any], reason: str) -> None:
    """Each by itself, in one line that says which."""
    assert broken(kept(**changes)) == [reason]
    assert "**broken** |" in table([kept(**changes)])


def event(process: int, kind: str, time_ns: int, **fields: Any) -> Event:
    """One end of a write."""
    return Event(process, kind, "write", "k", 1, time_ns, {"model": "register", **fields})


def test_operations_are_counted_by_what_clients_were_told() -> None:
    """A condition that does not hold is an answer; an operation without an end is unknown."""
    evidence = Evidence("any", timeout_s=10.0)
    evidence.count(
        pair(
            [
                event(1, "invoke", 1),
                event(1, "ok", 2),
                event(1, "invoke", 3),
                event(1, "fail", 4, reason="the condition does not hold"),
                event(1, "invoke", 5),
                event(1, "fail", 6, error="DiskFullError: no space"),
                event(1, "invoke", 7),
                event(1, "info", 8, error="UnknownOutcomeError: no answer in time"),
                event(2, "invoke", 9),
            ]
        )
    )
    assert (evidence.ok, evidence.refused, evidence.unknown) == (2, 1, 2)
    assert evidence.errors == {"DiskFullError": 1, "UnknownOutcomeError": 1}


def test_the_longest_wait_is_also_that_of_a_request_that_never_ended() -> None:
    """It has waited until now."""
    begun = {"type": "invoke", "process": 1, "time_ns": 1_000_000_000}
    ended = {"type": "info", "process": 1, "time_ns": 3_000_000_000}
    other = {"type": "invoke", "process": 2, "time_ns": 4_000_000_000}
    assert longest_wait_s([begun, ended], 99_000_000_000) == 2.0
    assert longest_wait_s([begun, ended, other], 99_000_000_000) == 95.0


@pytest.mark.parametrize(
    ("status", "body", "code"),
    [
        (200, b"value", ""),
        (507, b'{"code": "disk_full", "definite": true}', "disk_full"),
        (503, b"<html>upstream</html>", ""),
        (503, b'{"code": "overloaded"}', ""),
        (503, b"[]", ""),
    ],
)
def test_only_an_answer_that_says_whether_it_is_definite_has_a_code(
    status: int, body: bytes, code: str
) -> None:
    """Anything else leaves a client in the dark."""
    assert code_of(Answer(status, {}, body)) == code


def facts(**changes: Any) -> dict[str, Any]:
    """What a healthy node says of itself, but for the changes."""
    return {
        "node": "n1",
        "has_space": True,
        "disagrees": None,
        "metrics": {"events": {"digest_mismatch": 0, "entries_lost": 0, "leader": 3}},
        "shards": [{"shard": 0, "digest_mismatch": None}],
        **changes,
    }


HEALTHY = {"health": {"state": "healthy", "sentence": "All is well."}, "not_answering": []}


@pytest.mark.parametrize(
    ("cluster", "node", "found"),
    [
        ({}, {}, []),
        (
            {"health": {"state": "degraded", "sentence": "One is down."}},
            {},
            ["degraded: One is down."],
        ),
        ({"not_answering": ["n2"]}, {}, ["n2 does not answer"]),
        ({}, {"has_space": False}, ["n1 has no space"]),
        ({}, {"disagrees": "other map"}, ["n1 disagrees: other map"]),
        (
            {},
            {"metrics": {"events": {"digest_mismatch": 0, "entries_lost": 2}}},
            ["n1 has counted 2 of entries_lost"],
        ),
        (
            {},
            {"shards": [{"shard": 0, "digest_mismatch": {"index": 7}}]},
            ["n1: the replica of shard 0 differs from its leader's"],
        ),
    ],
)
def test_what_nodes_say_that_is_wrong_is_an_alarm(
    cluster: dict[str, Any], node: dict[str, Any], found: list[str]
) -> None:
    """A healthy cluster has none, however many elections it has counted."""
    assert alarms({**HEALTHY, **cluster}, [facts(**node)]) == found


def test_values_are_as_large_as_the_stage_wants_and_read_whole() -> None:
    """One that is longer or shorter was written by nobody."""
    memory = MemoryStore()
    store = PaddedStore(memory, 1000)
    store.put("k", "17")
    entry = store.get("k")
    assert entry is not None
    assert len(entry.value) == 1000
    assert entry.value.rstrip(b".") == b"17"
    memory.put("k", entry.value[:-1])
    with pytest.raises(TornValueError):
        store.get("k")


class Worker:
    """A process that the watch sees as the only worker of a node."""

    def __init__(self) -> None:
        self.workers = [2]
        self.names = ("n1",)
        self.engine = 1
        self.is_running = True

    def pid(self, _: str) -> int:
        """Of the engine."""
        return self.engine

    def process(self, _: str) -> "Worker":
        """The engine itself."""
        return self


def test_a_worker_that_ends_while_its_engine_lives_is_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One that goes with its killed engine is not."""
    node = Worker()
    monkeypatch.setattr(hardship, "workers_of", lambda _: node.workers)
    monkeypatch.setattr(hardship, "resident_bytes", lambda pid: pid * MIB)
    watch = Watch(node)  # type: ignore[arg-type]
    watch._look()
    node.workers = []
    watch._look()
    node.engine, node.workers = 3, [4]
    watch._look()
    watch._look()
    assert watch.ended == []
    assert watch.peak == {"engine": 3 * MIB, "worker": 4 * MIB}
    node.workers = [5]
    watch._look()
    watch._look()
    assert watch.ended == ["a worker of n1 ended by itself"]


def test_every_stage_says_what_must_take_effect() -> None:
    """And their directories are told apart by their names."""
    assert all(stage.hardships for stage in STAGES)
    assert len({stage.name for stage in STAGES}) == len(STAGES)
