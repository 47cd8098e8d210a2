"""The ledger: what clients are told is what was applied, by the identity of each request."""

import logging
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest

from raftkv.core.batches import encode_batch
from raftkv.core.cluster_map import GroupId
from raftkv.core.operations import (
    BATCH_FORMAT,
    Batch,
    Command,
    Delete,
    DeleteResult,
    Forget,
    FreeKey,
    Get,
    GetResult,
    Put,
    PutResult,
    Refused,
    SessionKey,
    Txn,
    TxnResult,
)
from raftkv.engine.engine import Engine
from raftkv.raft.group import Group
from raftkv.raft.host import GroupBounds
from raftkv.raft.journal import NO_OP, REGULAR
from raftkv.rpc.messages import (
    BatchRequest,
    BatchResult,
    Call,
    Failure,
    GetRequest,
    Reply,
    Served,
    WriteRequest,
)
from raftkv.sim import client
from raftkv.sim.ledger import Ledger
from raftkv.sim.options import Options
from raftkv.sim.run import run
from raftkv.sim.violation import Violation
from raftkv.storage.disk import DiskError

PUT = Command(Put(b"k", b"v"))
KEYED = Command(Put(b"k", b"v"), SessionKey("client 0", 1, 1, 1))
DELETE = Command(Delete(b"absent"))
READ = Command(Txn((), (Get(b"k"),), ()), SessionKey("client 0", 2, 1, 1))
UNKNOWN = Failure("timeout", "no answer in time")
DENIED = Failure("no_leader", "nobody leads", definite=True)


class Shard:
    """One group whose log is written by hand, and the clients of its nodes."""

    def __init__(self) -> None:
        self.ledger = Ledger()
        self.group = cast(
            "Group",
            SimpleNamespace(
                id=GroupId(0, 1), config=SimpleNamespace(owns=lambda _: True, bounds=GroupBounds())
            ),
        )
        self._calls = 0
        self.revision = 0

    def commit(self, *commands: Command) -> int:
        """Commit an entry with these commands; return the newest revision after it."""
        batch = Batch(BATCH_FORMAT, 1, 0, commands)
        _, self.revision = self.ledger.committed(self.group, REGULAR + encode_batch(batch))
        return self.revision

    def ask(self, *commands: Command | GetRequest) -> Call:
        """A client's request reaches a node."""
        self._calls += 1
        (single, *more) = commands
        one = isinstance(single, Command) and not more
        request: Any = WriteRequest(cast("Command", single)) if one else BatchRequest(commands)
        call = Call(self._calls, 1000, request)
        self.ledger.asked(call)
        return call

    def answer(self, call: Call, response: Any) -> None:
        """A node answers it."""
        self.ledger.answered(call, Reply(call.id, response, Served("n1")))


def test_what_was_applied_may_be_told() -> None:
    """To whoever asked for it; the entry may be seen after its answer."""
    shard = Shard()
    first, second = shard.ask(PUT), shard.ask(PUT)
    shard.answer(first, PutResult(1, 1))
    shard.commit(PUT)
    shard.ledger.committed(shard.group, NO_OP)
    shard.commit(PUT)
    shard.answer(second, PutResult(2, 2))
    shard.ledger.settle()


@pytest.mark.parametrize(
    "told",
    [PutResult(2, 1), PutResult(1, 2), Refused("precondition", 7)],
    ids=["revision", "version", "refusal"],
)
def test_an_answer_that_is_not_the_result_of_its_request(told: object) -> None:
    """A reply of an earlier life looks right, and belongs to something else."""
    shard = Shard()
    call = shard.ask(PUT)
    shard.commit(PUT)
    shard.answer(call, told)
    with pytest.raises(Violation, match=r"1 requests .* were answered .* of 0 entries"):
        shard.ledger.settle()


def test_a_conditional_put_that_is_acknowledged_with_the_result_of_another() -> None:
    """Both results are true of some write, and only one of them of this one."""
    shard = Shard()
    mine = Command(Put(b"k", b"mine", if_absent=True))
    call = shard.ask(mine)
    shard.ask(PUT)
    revision = shard.commit(PUT, mine)
    shard.answer(call, PutResult(revision, 1))
    with pytest.raises(Violation, match="of 0 entries"):
        shard.ledger.settle()


def test_one_entry_answers_one_request() -> None:
    """Two that look the same were applied twice, if both were."""
    shard = Shard()
    calls = [shard.ask(DELETE), shard.ask(DELETE)]
    shard.commit(DELETE)
    for call in calls:
        shard.answer(call, DeleteResult(deleted=False, revision=None))
    with pytest.raises(Violation, match=r"2 requests .* outcome of 1 entries"):
        shard.ledger.settle()


def test_one_entry_answers_all_requests_under_its_idempotency_key() -> None:
    """That is what the key is for."""
    shard = Shard()
    calls = [shard.ask(KEYED), shard.ask(KEYED)]
    shard.commit(KEYED)
    for call in calls:
        shard.answer(call, PutResult(1, 1))
    shard.commit(KEYED)
    shard.ledger.settle()


def test_what_is_called_certainly_not_applied_is_not_applied() -> None:
    """Neither before it was said nor after."""
    for told_first in (False, True):
        shard = Shard()
        call = shard.ask(PUT)
        if not told_first:
            shard.commit(PUT)
        else:
            shard.answer(call, DENIED)
        with pytest.raises(Violation, match="1 were called certainly not applied, but 1 were"):
            shard.commit(PUT) if told_first else shard.answer(call, DENIED)


def test_a_write_that_was_refused_and_asked_for_again_is_applied_once() -> None:
    """One request for it may be in the log, with or without a key, and no second one."""
    shard = Shard()
    shard.answer(shard.ask(PUT), DENIED)
    shard.answer(shard.ask(PUT), UNKNOWN)
    shard.commit(PUT)
    with pytest.raises(Violation, match="of 2 requests"):
        shard.commit(PUT)


def test_what_was_refused_under_a_key_each_time_is_not_applied() -> None:
    """Whichever of the requests it was."""
    shard = Shard()
    shard.answer(shard.ask(KEYED), DENIED)
    shard.answer(shard.ask(KEYED), DENIED)
    with pytest.raises(Violation, match="was applied, and was called certainly not applied"):
        shard.commit(KEYED)


def test_an_entry_that_a_shard_refuses_is_not_applied() -> None:
    """It may be tried elsewhere, and called certainly not applied."""
    shard = Shard()
    mine = Command(Put(b"k", b"mine", if_revision=7))
    call = shard.ask(mine)
    shard.commit(mine)
    shard.commit(mine)
    shard.answer(call, DENIED)
    shard.ledger.settle()


def test_a_write_takes_effect_once_under_its_key() -> None:
    """Also when the shard has forgotten the key before the copy arrives."""
    named = Command(Put(b"k", b"v"), FreeKey("f"))  # a session would not be let in again
    shard = Shard()
    shard.ask(named)
    shard.commit(named)
    for _ in range(2):  # not what was used since the last time
        shard.commit(Command(Forget(("f",), ())))
    with pytest.raises(Violation, match="took effect more than once"):
        shard.commit(named)


def test_a_read_only_transaction_may_be_repeated() -> None:
    """It has another result each time, and each that is told is one of them."""
    shard = Shard()
    call = shard.ask(READ)
    shard.commit(READ)
    shard.ask(PUT)
    shard.commit(PUT, READ)
    shard.answer(call, TxnResult(succeeded=True, revision=None, results=(GetResult(None),)))
    shard.ledger.settle()


def test_a_write_that_nobody_asked_for() -> None:
    """Only leaders forget by themselves."""
    shard = Shard()
    shard.commit(Command(Forget((), (), 0)))
    with pytest.raises(Violation, match="of 0 requests"):
        shard.commit(PUT)


def test_a_request_is_answered_once() -> None:
    """And by its own answer."""
    shard = Shard()
    call = shard.ask(PUT)
    shard.answer(call, UNKNOWN)
    with pytest.raises(Violation, match="was answered twice"):
        shard.answer(call, UNKNOWN)
    other = shard.ask(PUT)
    with pytest.raises(Violation, match="by another's answer"):
        shard.ledger.answered(other, Reply(call.id, UNKNOWN, Served("n1")))


def test_a_bug_is_no_answer() -> None:
    """Whatever became of the write."""
    shard = Shard()
    with pytest.raises(Violation, match="was answered with a bug: see the log"):
        shard.answer(shard.ask(PUT), Failure("internal", "see the log"))


def test_every_write_of_a_batch_has_an_account() -> None:
    """A result belongs to the operation in its place."""
    shard = Shard()
    call = shard.ask(PUT, GetRequest(b"k"), DELETE)
    shard.commit(PUT)
    shard.answer(call, BatchResult((PutResult(1, 1), GetResult(None), DENIED)))
    shard.ledger.settle()
    with pytest.raises(Violation, match="certainly not applied, but 1 were"):
        shard.commit(DELETE)


@pytest.mark.parametrize("lie", ["done", "not done"])
def test_a_run_ends_with_the_lie_that_a_client_was_told(
    lie: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A refused write is acknowledged, or an applied one is called certainly not applied."""
    honest = Engine.handle

    def handle(self: Engine, call: Call, reply: Callable[[Reply], None]) -> None:
        def tell(answer: Reply) -> None:
            if lie == "done" and isinstance(answer.response, Refused):
                answer = msgspec.structs.replace(answer, response=PutResult(7, 1))
            if lie == "not done" and isinstance(answer.response, PutResult):
                answer = msgspec.structs.replace(answer, response=DENIED)
            reply(answer)

        honest(self, call, tell)

    monkeypatch.setattr(Engine, "handle", handle)
    monkeypatch.setattr(client, "AGAIN_SHARE", 0.0)  # clients would see the lie themselves
    report = run(
        Options.of(1, 0.05, workloads=("append",), faults=(), operations_per_s=40.0, copies=0.0)
    )
    seen = {"done": "of 0 entries", "not done": "certainly not applied"}
    assert report.violation is not None
    assert seen[lie] in report.violation


@pytest.mark.parametrize(
    ("error", "found"),
    [
        (TypeError("odd"), "n1 said odd things: TypeError: odd"),
        (ConnectionResetError("reset"), None),
        (DiskError(Path("log"), "write", "full"), None),
    ],
)
def test_an_exception_that_a_node_only_logs_ends_the_run(
    error: Exception, found: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unless a fault explains it: nobody reads the log of a simulated node."""

    def handle(self: Engine, call: Call, reply: Callable[[Reply], None]) -> None:
        try:
            raise error
        except type(error):
            logging.getLogger("raftkv.engine").exception("n1 said odd things")
        honest(self, call, reply)

    honest = Engine.handle
    monkeypatch.setattr(Engine, "handle", handle)
    report = run(Options.of(1, 0.05, workloads=("set",), faults=()))
    assert (report.violation is None) == (found is None), report.violation
    assert found is None or found in str(report.violation)
