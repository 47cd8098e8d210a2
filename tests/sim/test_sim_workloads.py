"""What simulated clients write down, and the operations that they do."""

import asyncio
from collections.abc import Callable
from itertools import count
from random import Random
from typing import Any, cast

import pytest
from msgspec import structs
from sim_front import Front
from sim_parts import Bench, recording

from raftkv.check.checker import check
from raftkv.check.history import Operation, pair
from raftkv.check.models import MODELS
from raftkv.check.verdict import Verdict
from raftkv.core.operations import (
    Delete,
    DeleteResult,
    GetResult,
    Put,
    PutResult,
    Range,
    RangeResult,
    Refused,
    Txn,
    TxnResult,
)
from raftkv.rpc.messages import (
    Failure,
    GetRequest,
    Request,
    Response,
    WriteRequest,
)
from raftkv.sim.client import Client, ClientNetwork
from raftkv.sim.machine import Machine
from raftkv.sim.play import play
from raftkv.sim.recorder import Recorder
from raftkv.sim.scheduler import SECOND_US
from raftkv.sim.staleness import CLOCK_TOLERANCE, Staleness
from raftkv.sim.violation import Violation
from raftkv.workloads import WORKLOADS
from raftkv.workloads.keys import KeysByTime
from raftkv.workloads.steps import Context, Outcome

UNKNOWN = Failure("unknown", "link lost", definite=False)


# --- the recorder ----------------------------------------------------------------------------


def test_what_is_recorded_is_a_history() -> None:
    """Begin and end of each, with its members; unknown outcomes stay open."""
    bench, (notes, note) = Bench(), recording()
    recorder = Recorder(lambda: bench.scheduler.now_us, note)
    write = recorder.begin("register", "write", "k", "v", owner="me")
    bench.run_s(1.0)
    read = recorder.begin("register", "read", "k")
    other = recorder.begin("set", "add", "s", 1)
    bench.run_s(1.0)
    read.ok("v", revision=9)
    write.not_ok(Outcome("info", detail="lost"))
    other.fail(observed_revision=3)
    first, second = pair(recorder.events["register"])
    assert (first.f, first.key, first.value, first.status) == ("write", "k", "v", "info")
    assert (first.fields["owner"], first.fields["error"]) == ("me", "lost")
    assert (second.status, second.result, second.fields["revision"]) == ("ok", "v", 9)
    assert (second.invoked_ns, second.completed_ns) == (10**9, 2 * 10**9)
    (added,) = pair(recorder.events["set"])
    assert (added.status, added.fields["observed_revision"]) == ("fail", 3)
    assert recorder.counts == {"ok": 1, "fail": 1, "info": 1}
    assert recorder.operations == 3
    assert len({event.process for events in recorder.events.values() for event in events}) == 3
    assert len(notes) == 6, "everything is in the trace"


def test_what_did_not_succeed_is_as_certain_as_the_client_is() -> None:
    """A failure is not made an unknown outcome, nor the reverse."""
    recorder = Recorder(lambda: 0, lambda *_: None)
    for status in ("fail", "info"):
        recorder.begin("register", "write", "k", "v").not_ok(Outcome(status, detail=status))
    statuses = [(op.status, op.fields["error"]) for op in pair(recorder.events["register"])]
    assert statuses == [("fail", "fail"), ("info", "info")]


# --- stale reads -----------------------------------------------------------------------------


def test_a_stale_read_must_see_what_is_older_than_its_age() -> None:
    """Acknowledged before (with room for the reader's clock): seen."""
    bench = Bench()
    staleness = Staleness(lambda: bench.scheduler.now_us)
    staleness.written("k", 7)
    bench.run_s(1.0)
    staleness.written("k", 8)
    bench.run_s(1.0)
    assert staleness.oldest("k", None) == 0, "without an age nothing is promised"
    assert staleness.oldest("k", 0) == 8
    assert staleness.oldest("k", int(1500 / CLOCK_TOLERANCE)) == 7
    assert staleness.oldest("k", 3000) == 0
    assert staleness.oldest("other", 0) == 0
    staleness.check("k", 7, 7, 1000)
    with pytest.raises(Violation, match="max_age_ms=1000 returned revision 6, but 7 was"):
        staleness.check("k", 7, 6, 1000)


def test_a_stale_read_finds_nothing_only_where_a_delete_may_have_been() -> None:
    """An entry does not vanish from old states by itself, nor come back."""
    bench = Bench()
    staleness = Staleness(lambda: bench.scheduler.now_us)
    staleness.check("k", staleness.oldest("k", 0), None, 0)
    staleness.written("k", 7)
    bench.run_s(1.0)
    with pytest.raises(Violation, match="max_age_ms=0 returned no entry, but 7 was"):
        staleness.check("k", staleness.oldest("k", 0), None, 0)
    staleness.deleting("k")
    staleness.check("k", staleness.oldest("k", 0), None, 0)
    staleness.deleted("k", 9)
    bench.run_s(1.0)
    staleness.check("k", staleness.oldest("k", 0), None, 0)
    with pytest.raises(Violation, match="returned revision 7, but 9 was"):
        staleness.check("k", staleness.oldest("k", 0), 7, 0)
    staleness.deleting("other")
    staleness.deleted("other", None)
    with pytest.raises(Violation, match="returned no entry, but 3 was"):
        staleness.check("other", 3, None, 0)


# --- workloads -------------------------------------------------------------------------------


class Theatre(Front):
    """Clients with a workload in front of one node.

    Args:
        lie: changes what the node answers before the clients hear it.
    """

    def __init__(self, lie: Callable[[Request, Response], Response] | None = None) -> None:
        super().__init__()
        scheduler = self.bench.scheduler
        self.recorder = Recorder(lambda: scheduler.now_us, lambda *_: None)
        staleness = Staleness(lambda: scheduler.now_us)
        self.context = Context(
            self.recorder, KeysByTime(self._era), staleness, batches=True, ranges=True
        )
        client_network = (
            self.client_network
            if lie is None
            else cast("ClientNetwork", Liar(self.client_network, lie))
        )
        self.clients = [
            Client(
                number,
                client_network,
                lambda: [self.cluster.machine],
                Random(number),
                idempotent=number != 2,
                now_s=lambda: scheduler.now_s,
            )
            for number in range(3)
        ]

    def _era(self) -> int:
        return self.bench.scheduler.now_us // (20 * SECOND_US)

    async def _work(self, client: Client, name: str, operations: int) -> None:
        for _ in range(operations):
            await play(client, WORKLOADS[name](client, self.context))
            await asyncio.sleep(client.random.uniform(0, 0.01))

    def play(self, name: str, operations: int = 60) -> None:
        """Let every client do so many operations."""
        tasks = [
            self.loop.create_task(self._work(client, name, operations)) for client in self.clients
        ]
        self.bench.run_s(60.0)
        for task in tasks:
            task.result()

    def verdict(self, name: str) -> Verdict:
        """What the checker says."""
        return check(self.operations(name), MODELS[MODEL_OF.get(name, name)]).verdict

    def operations(self, name: str) -> list[Operation]:
        """What was done."""
        return pair(self.recorder.events[MODEL_OF.get(name, name)])


class Liar:
    """A network that changes answers."""

    def __init__(
        self, client_network: ClientNetwork, lie: Callable[[Request, Response], Response]
    ) -> None:
        self._client_network = client_network
        self._lie = lie

    async def ask(
        self, machine: Machine, request: Request, remaining_ms: int, wait_s: float | None = None
    ) -> Response:
        """Ask, and lie."""
        return self._lie(
            request, await self._client_network.ask(machine, request, remaining_ms, wait_s)
        )


FUNCTIONS = {
    "register": {"read", "write", "cas", "delete"},
    "append": {"read", "append"},
    "set": {"read", "add"},
    "bank": {"init", "read", "transfer"},
    "lock": {"acquire", "release"},
    "pages": {"read", "write", "delete"},
    "txn": {"read", "cas", "write", "delete"},
}

MODEL_OF = {"pages": "register", "txn": "register"}
"""Workloads that another one's model judges."""


@pytest.mark.parametrize("name", WORKLOADS)
def test_a_workload_on_a_healthy_node_is_linearizable(name: str) -> None:
    """Every operation of its model is done, nothing is left unknown, and most succeed."""
    theatre = Theatre()
    theatre.play(name)
    done = theatre.operations(name)
    assert {operation.f for operation in done} == FUNCTIONS[name]
    for f in FUNCTIONS[name]:
        assert any(operation.f == f and operation.status == "ok" for operation in done), f
    assert {operation.status for operation in done} <= {"ok", "fail"}
    assert len(done) >= 100
    assert theatre.verdict(name) is Verdict.VALID
    assert len({operation.key for operation in done}) < len(done) / 5, "clients meet on keys"


class OldValues:
    """Answers some reads with what they returned a while ago."""

    def __init__(self) -> None:
        self._seen: dict[bytes, list[GetResult]] = {}

    def __call__(self, request: Request, answer: Response) -> Response:
        """Lie about single keys, to reads that the checker judges."""
        if not isinstance(request, GetRequest) or not isinstance(answer, GetResult):
            return answer
        if request.consistency == "stale":
            return answer
        seen = self._seen.setdefault(request.key, [])
        seen.append(answer)
        return seen[-4] if len(seen) % 5 == 0 else answer


@pytest.mark.parametrize("name", ["register", "append"])
def test_reads_of_old_values_are_caught(name: str) -> None:
    """What the clients write down is enough to see it."""
    theatre = Theatre(OldValues())
    theatre.play(name)
    assert theatre.verdict(name) is Verdict.VIOLATION


def ignoring_conditions(request: Request, answer: Response) -> Response:
    """A lie: puts that were refused were done."""
    puts = isinstance(request, WriteRequest) and isinstance(request.command.operation, Put)
    if puts and isinstance(answer, Refused) and answer.reason == "precondition":
        return PutResult(2**50, 1)
    return answer


@pytest.mark.parametrize("name", ["pages", "txn"])
def test_a_page_or_range_that_leaves_out_an_entry_is_caught(name: str) -> None:
    """What it does not show up to its last key is not there."""

    def without_first(result: Any) -> Any:
        if isinstance(result, RangeResult) and len(result.entries) > 1:
            return structs.replace(result, entries=result.entries[1:])
        return result

    def lie(_: Request, answer: Response) -> Response:
        if isinstance(answer, TxnResult):
            return structs.replace(answer, results=tuple(map(without_first, answer.results)))
        return cast("Response", without_first(answer))

    theatre = Theatre(lie)
    theatre.play(name)
    assert theatre.verdict(name) is Verdict.VIOLATION


def test_a_branch_that_was_not_taken_is_caught() -> None:
    """A transaction says that its condition held, which it did not."""

    def lie(request: Request, answer: Response) -> Response:
        if not isinstance(answer, TxnResult) or answer.succeeded:
            return answer
        assert isinstance(request, WriteRequest)
        assert isinstance(request.command.operation, Txn)
        done = {
            Put: PutResult(2**50, 1),
            Delete: DeleteResult(deleted=False, revision=None),
            Range: next(result for result in answer.results if isinstance(result, RangeResult)),
        }
        results = tuple(done[type(part)] for part in request.command.operation.then)
        return TxnResult(succeeded=True, revision=2**50, results=cast("Any", results))

    theatre = Theatre(lie)
    theatre.play("txn")
    assert theatre.verdict("txn") is Verdict.VIOLATION


def test_a_value_that_is_too_large_is_refused_and_leaves_nothing() -> None:
    """A node that takes it breaks its promise."""
    taken = PutResult(2**50, 1)

    def lie(request: Request, answer: Response) -> Response:
        return taken if isinstance(answer, Failure) and answer.code == "too_large" else answer

    theatre = Theatre()
    theatre.play("register", 120)
    refused = [
        operation
        for operation in theatre.operations("register")
        if "too_large" in operation.fields.get("error", "")
    ]
    assert refused
    assert {operation.status for operation in refused} == {"fail"}
    assert theatre.verdict("register") is Verdict.VALID
    with pytest.raises(Violation, match=r"was taken|another request under"):
        Theatre(lie).play("register", 120)


@pytest.mark.parametrize("name", ["register", "lock"])
def test_conditions_that_are_ignored_are_caught(name: str) -> None:
    """Two clients are told that they got what only one can have."""
    theatre = Theatre(ignoring_conditions)
    theatre.play(name)
    assert theatre.verdict(name) is Verdict.VIOLATION


def one_more(result: object) -> GetResult:
    """A lie: there is one more on this account."""
    assert isinstance(result, GetResult)
    assert result.entry is not None
    return GetResult(structs.replace(result.entry, value=b"%d" % (int(result.entry.value) + 1)))


def test_money_from_nowhere_is_caught() -> None:
    """One balance is wrong by one, once in a while."""
    reads = count()

    def lie(_: Request, answer: Response) -> Response:
        if not isinstance(answer, TxnResult) or len(answer.results) != 3 or answer.revision:
            return answer
        if next(reads) % 7 != 6:
            return answer
        first, *rest = answer.results
        return structs.replace(answer, results=(one_more(first), *rest))

    theatre = Theatre(lie)
    theatre.play("bank")
    assert theatre.verdict("bank") is Verdict.VIOLATION


def test_elements_that_vanish_are_caught() -> None:
    """A set that was read without an element that had been added."""

    def lie(_: Request, answer: Response) -> Response:
        if isinstance(answer, RangeResult) and len(answer.entries) > 10:
            return structs.replace(answer, entries=answer.entries[1:])
        return answer

    theatre = Theatre(lie)
    theatre.play("set")
    assert theatre.verdict("set") is Verdict.VIOLATION


def test_values_are_never_written_twice() -> None:
    """So that a read says which write it has seen."""
    theatre = Theatre()
    theatre.play("register")
    values = [
        operation.value["value"] if operation.f == "cas" else operation.value
        for operation in theatre.operations("register")
        if operation.f in ("write", "cas")
    ]
    assert len(values) == len(set(values)) > 50


def test_a_lost_release_leaves_the_lock_unknown() -> None:
    """A client that is not told whether it gave the lock back does not claim anything."""

    def lie(request: Request, answer: Response) -> Response:
        deletes = isinstance(request, WriteRequest) and isinstance(
            request.command.operation, Delete
        )
        return UNKNOWN if deletes else answer

    theatre = Theatre(lie)
    theatre.play("lock", 3)
    statuses = {op.status for op in theatre.operations("lock") if op.f == "release"}
    assert statuses == {"info", "fail"}, "and then it holds nothing"
    assert theatre.verdict("lock") is Verdict.VALID
