"""Simulated clients: when they try again, when they give up, and what they then say."""

import asyncio
from collections.abc import Coroutine
from random import Random
from types import SimpleNamespace
from typing import Any, cast

import pytest

from raftkv.core.operations import (
    Command,
    Forget,
    GetResult,
    Put,
    PutResult,
    Refused,
    SessionKey,
)
from raftkv.core.shard.expiry import LIFETIME_S
from raftkv.core.shard.outcomes import OutcomeMemory
from raftkv.rpc.messages import (
    BatchRequest,
    BatchResult,
    Failure,
    GetRequest,
    Request,
    Response,
    WriteRequest,
)
from raftkv.sim import client as client_module
from raftkv.sim.client import ATTEMPT_MS, OPERATION_S, Client, ClientNetwork, Outcome
from raftkv.sim.front_end import Lost
from raftkv.sim.machine import Machine
from raftkv.sim.violation import Violation
from tests.sim.sim_front import Front
from tests.sim.sim_parts import Bench

PUT = Put(b"k", b"v")
DONE = PutResult(7, 1)
BUSY = Failure("busy", "full", definite=True)
UNKNOWN = Failure("unknown", "link lost", definite=False)
NODES = [cast("Machine", SimpleNamespace(name=name)) for name in ("n1", "n2")]
SENT, NOT_SENT = Lost(sent=True), Lost(sent=False)


@pytest.fixture(autouse=True)
def _nothing_is_sent_again_for_its_own_sake(monkeypatch: pytest.MonkeyPatch) -> None:
    """Unless a test is about that."""
    monkeypatch.setattr(client_module, "AGAIN_SHARE", 0.0)


class Script:
    """A network that answers by a script; the last answer again and again. Each takes 0.1 s."""

    def __init__(self, *answers: Response | Lost) -> None:
        self._answers = list(answers)
        self.asked: list[Request] = []
        self.then: Response | None = None
        """What a name is answered with that was asked for before."""

    async def ask(
        self, machine: Machine, request: Request, remaining_ms: int, wait_s: float | None = None
    ) -> Response:
        """Answer."""
        assert machine in NODES
        assert ATTEMPT_MS <= remaining_ms <= OPERATION_S * 1000
        assert wait_s is None or wait_s <= OPERATION_S
        names = [getattr(asked, "command", None) for asked in self.asked]
        self.asked.append(request)
        if self.then is not None and isinstance(request, WriteRequest):
            name = request.command.idempotency
            if any(command is not None and command.idempotency == name for command in names):
                return self.then
        answer = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        await asyncio.sleep(0.1)
        if isinstance(answer, Lost):
            raise answer
        return answer


class Caller(Bench):
    """A client in front of a scripted network."""

    def __init__(self, *answers: Response | Lost, idempotent: bool = True) -> None:
        super().__init__()
        self.script = Script(*answers)
        self.client = Client(
            5,
            cast("ClientNetwork", self.script),
            lambda: NODES,
            Random(1),
            idempotent=idempotent,
            now_s=lambda: self.scheduler.now_s,
        )

    @property
    def keys(self) -> list[SessionKey]:
        """The session keys of the writes asked for."""
        requests = [asked for asked in self.script.asked if isinstance(asked, WriteRequest)]
        keys = [request.command.idempotency for request in requests]
        assert all(isinstance(key, SessionKey) for key in keys)
        return cast("list[SessionKey]", keys)

    def result(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Run it to its end."""
        task = self.loop.create_task(work)
        self.run_s(3 * OPERATION_S)
        assert self.failures == []
        return task.result()


# --- trying again ----------------------------------------------------------------------------


def test_an_answer_is_an_outcome() -> None:
    """Applied is ok; refused by the state machine is a certain failure."""
    for answer, status in ((DONE, "ok"), (Refused("precondition", 3), "fail")):
        caller = Caller(answer)
        assert caller.result(caller.client.write(PUT)) == Outcome(status, answer)
        assert len(caller.script.asked) == 1
        assert caller.client.given_up == []


def test_a_session_makes_every_write_repeatable() -> None:
    """A write whose answer is lost is sent again, under the same key; the next has another."""
    caller = Caller(SENT, UNKNOWN, DONE)
    assert caller.result(caller.client.write(PUT)).status == "ok"
    born, owner = caller.keys[0].born, 6  # the client's number, and one
    assert caller.keys == [SessionKey("client 5.1", 1, 1, born, owner)] * 3
    caller.result(caller.client.write(PUT))
    assert caller.keys[-1] == SessionKey("client 5.1", 2, 2, born, owner)


def test_a_session_that_was_not_used_for_long_is_left() -> None:
    """As the client library leaves it: it may have been forgotten."""
    caller = Caller(DONE)
    for _ in range(2):
        caller.result(caller.client.write(PUT))
        caller.run_s(LIFETIME_S)
    assert [key.session for key in caller.keys] == ["client 5.1", "client 5.2"]
    assert caller.keys[0].born < caller.keys[1].born


def test_a_write_whose_session_was_forgotten_goes_on_in_another() -> None:
    """No copy of it can have been applied: it is the only one, and young."""
    later = 2**51
    caller = Caller(BUSY, Refused("forgotten", later), DONE)
    assert caller.result(caller.client.write(PUT)).status == "ok"
    first, again, renewed = caller.keys
    assert first == again
    assert (renewed.session, renewed.sequence, renewed.born) == ("client 5.2", 1, later + 1)


@pytest.mark.parametrize(
    "answers",
    [
        (SENT, Refused("forgotten", 2**51)),
        (Refused("forgotten"),),
        (Refused("forgotten", 1),),
    ],
)
def test_what_was_forgotten_is_unknown(answers: tuple[Response | Lost, ...]) -> None:
    """A copy before may have been applied, or the refusal is for another reason than the birth."""
    caller = Caller(*answers, DONE)
    outcome = caller.result(caller.client.write(PUT))
    assert (outcome.status, outcome.detail) == ("info", "forgotten")
    assert len(caller.script.asked) == len(answers)


def test_a_write_of_unknown_outcome_is_not_sent_again_when_it_may_be_forgotten() -> None:
    """Sooner than the client gives up, if outcomes live so short."""
    caller = Caller(SENT)
    caller.client._resend_s = 1.0
    assert caller.result(caller.client.write(PUT)).status == "info"
    assert len(caller.script.asked) < 15  # 0.1 s each


@pytest.mark.parametrize("answer", [SENT, UNKNOWN])
def test_without_a_session_a_write_that_may_be_applied_is_not_sent_again(
    answer: Response | Lost,
) -> None:
    """Its outcome is unknown, and the client says so."""
    caller = Caller(answer, DONE, idempotent=False)
    outcome = caller.result(caller.client.write(PUT))
    assert (outcome.status, outcome.answer) == ("info", None)
    assert caller.script.asked == [WriteRequest(Command(PUT))]


@pytest.mark.parametrize("answer", [NOT_SENT, BUSY])
def test_what_was_certainly_not_applied_is_sent_again(answer: Response | Lost) -> None:
    """By everybody; after it nothing is unknown."""
    for idempotent in (True, False):
        caller = Caller(answer, answer, DONE, idempotent=idempotent)
        assert caller.result(caller.client.write(PUT)).status == "ok"
        assert len(caller.script.asked) == 3


@pytest.mark.parametrize(
    ("answers", "status", "asked"),
    [
        ((NOT_SENT,), "fail", range(4, 5)),
        ((BUSY,), "fail", range(6, 10)),
        ((SENT,), "info", range(10, 20)),
        ((SENT, BUSY), "info", range(7, 11)),
        ((UNKNOWN, BUSY), "info", range(7, 11)),
    ],
)
def test_a_client_gives_up_in_the_end(
    answers: tuple[Response | Lost, ...], status: str, asked: range
) -> None:
    """Known to have failed only if every attempt was; it remembers when it began and why.

    It asks ever more rarely, as often as the library would: twice each where all nodes refuse,
    and not before the second is over for which a full one asks.
    """
    caller = Caller(*answers)
    caller.run_s(3.0)
    outcome = caller.result(caller.client.write(PUT))
    assert outcome.status == status
    ((began_s, why),) = caller.client.given_up
    assert began_s == pytest.approx(3.0, abs=0.001)
    assert why.startswith("WriteRequest: ")
    assert outcome.detail in why
    assert len(caller.script.asked) in asked


@pytest.mark.parametrize("answer", [SENT, UNKNOWN])
def test_a_read_is_tried_again_and_never_of_unknown_outcome(answer: Response | Lost) -> None:
    """It changes nothing, so that one without an answer did not happen."""
    found = GetResult(None)
    caller = Caller(answer, found, idempotent=False)
    assert caller.result(caller.client.read(GetRequest(b"k"))) == Outcome("ok", found)
    caller = Caller(answer)
    assert caller.result(caller.client.read(GetRequest(b"k"))).status == "fail"


@pytest.mark.parametrize("reason", ["table_full", "share_full", "moved", "forgotten"])
def test_a_refusal_of_one_copy_says_nothing_of_another(reason: Any) -> None:
    """Only a condition's outcome is remembered with the name; a copy before may yet be applied."""
    caller = Caller(SENT, Refused(reason))
    assert caller.result(caller.client.write(PUT)).status == "info"
    caller = Caller(SENT, Refused("precondition", 3))
    assert caller.result(caller.client.write(PUT)).status == "fail"


async def write_often(client: Client) -> None:
    """Long enough to send some writes again."""
    for _ in range(100):
        await client.write(PUT)


def test_what_was_acknowledged_is_answered_from_memory_or_it_is_a_violation(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Now and then a client sends a write again, or another one under its name."""
    monkeypatch.setattr(client_module, "AGAIN_SHARE", 0.08)
    asked = []
    for other in (DONE, Refused("key_reused")):
        caller = Caller(DONE)
        caller.script.then = other
        with pytest.raises(Violation, match=r"sent again|another request under"):
            caller.result(write_often(caller.client))
        asked.append(caller.script.asked[-1])
    reused, again = asked
    assert isinstance(again, WriteRequest)
    assert again.command.operation == PUT
    assert isinstance(reused, WriteRequest)
    assert reused.command.operation == Put(PUT.key, b"", if_revision=1)


def test_a_batch_has_no_session() -> None:
    """Its writes are not repeatable, whoever sends them."""
    caller = Caller(SENT, BatchResult((DONE,)))
    assert caller.result(caller.client.batch([PUT, GetRequest(b"k")])).status == "info"
    assert caller.script.asked == [BatchRequest((Command(PUT), GetRequest(b"k")))]


# --- the way to the nodes -----------------------------------------------------------------


def test_a_node_that_runs_answers_through_its_door() -> None:
    """Not at once: the way there and back takes time."""
    front = Front()
    task = front.ask()
    front.bench.run_s(0.0002)
    assert not task.done()
    front.bench.run_s(0.1)
    assert task.result() == GetResult(None)


def test_a_node_that_is_down_is_noticed_at_once() -> None:
    """Its kernel refuses the connection: nothing was sent."""
    front = Front()
    front.cluster.machine.kill()
    task = front.ask()
    front.bench.run_s(0.01)
    assert front.lost(task) is False


def test_a_machine_without_power_says_nothing() -> None:
    """The client waits until the time is up, and cannot know."""
    front = Front()
    front.cluster.machine.cut_power(Random(1))
    task = front.ask(remaining_ms=1000)
    front.bench.run_s(0.9)
    assert not task.done()
    front.bench.run_s(1.0)
    assert front.lost(task) is True


def test_who_waits_for_an_engine_that_ends_hears_of_it_at_once() -> None:
    """Its worker says what it knows of each call, or ends before that and its connections too."""
    answers_left: set[bool] = set()
    for seed in range(12):
        front = Front(seed)
        front.cluster.machine.freeze()
        read, write = front.ask(), front.ask(WriteRequest(Command(PUT)))
        front.bench.run_s(0.1)
        front.cluster.machine.kill()
        front.bench.run_s(0.02)
        lost = "the engine was lost"
        for task, told in (
            (read, Failure("unavailable", lost, definite=True)),
            (write, Failure("unknown", lost, definite=False)),
        ):
            if task.exception() is None:
                assert task.result() == told
            else:
                assert front.lost(task) is True
        answers_left.add(read.exception() is None)
    assert answers_left == {True, False}, "both happen"


def test_a_worker_that_is_killed_takes_its_answers_with_it() -> None:
    """The engine lives on, finishes what it was asked, and another worker takes the place."""
    front = Front()
    machine = front.cluster.machine
    machine.freeze()
    write = front.ask(WriteRequest(Command(PUT)))
    front.bench.run_s(0.1)
    machine.front.kill_worker()
    front.bench.run_s(0.01)
    assert front.lost(write) is True
    refused = front.ask()
    front.bench.run_s(0.01)
    assert front.lost(refused) is False, "nobody takes requests now"
    machine.thaw()
    front.bench.run_s(0.5)
    read = front.ask()
    front.bench.run_s(0.1)
    answer = read.result()
    assert isinstance(answer, GetResult)
    assert answer.entry is not None, "the write was done"


def test_connections_of_clients_break_as_often_as_they_are_told_to() -> None:
    """Under the request or its answer; the request may have been done all the same."""
    front = Front()
    front.client_network.cut_share = 1.0
    tasks = [front.ask(WriteRequest(Command(Put(b"k", b"%d" % n)))) for n in range(40)]
    front.bench.run_s(0.5)
    lost = [task for task in tasks if task.exception() is not None]
    assert 5 < len(lost) < 40
    assert all(front.lost(task) for task in lost)


def test_a_call_may_outlive_its_client() -> None:
    """A client waits for an attempt's time; a node that was frozen goes on with it after that."""
    front = Front()
    machine = front.cluster.machine
    machine.freeze()
    write = front.ask(WriteRequest(Command(PUT)), 60_000)
    front.bench.run_s(ATTEMPT_MS / 1000 + 1.0)
    assert front.lost(write) is True
    machine.thaw()
    front.bench.run_s(1.0)
    read = front.ask()
    front.bench.run_s(0.1)
    assert read.result() != GetResult(None)


# --- copies that arrive late -----------------------------------------------------------------


class Copied(Front):
    """A network that carries every write in a session twice, the second time within 20 s."""

    def __init__(self) -> None:
        super().__init__()
        self.wrong: list[Violation] = []
        self.client_network = ClientNetwork(
            self.bench.scheduler,
            self.loop,
            Random(1),
            copies=1.0,
            copies_within_s=20.0,
            wrong=self.wrong.append,
        )

    def put(self) -> "asyncio.Task[Response]":
        """Write in a session, and wait for the answer but not for the copy."""
        request = WriteRequest(Command(PUT, SessionKey("s", 1, 1, 1)))
        task = self.loop.create_task(self.client_network.ask(self.cluster.machine, request, 2000))
        self.bench.run_s(1.0)
        assert self.client_network.copies == 0
        return task

    def forget(self) -> None:
        """Let the shard forget the session, as if it had not been used for long."""
        engine = self.cluster.machine.serving
        assert engine is not None
        for group in engine.host.groups.values():
            group.state.memory.forget(Forget((), ()))
            group.state.memory.forget(Forget((), ("s",)))
            assert list(group.state.memory._sessions) == []


@pytest.fixture
def copied() -> Copied:
    """A node that leads, behind such a network."""
    front = Copied()
    front.bench.run_s(5.0)
    return front


def test_a_copy_is_answered_as_the_write_was(copied: Copied) -> None:
    """The shard remembers; nobody waits for the copy's answer."""
    assert isinstance(copied.put().result(), PutResult)
    copied.bench.run_s(20.0)
    assert (copied.client_network.copies, copied.wrong) == (1, [])


def test_a_copy_that_comes_after_its_session_was_forgotten_changes_nothing(
    copied: Copied,
) -> None:
    """It is refused."""
    copied.put()
    copied.forget()
    copied.bench.run_s(20.0)
    assert (copied.client_network.copies, copied.wrong) == (1, [])


def test_a_copy_that_is_applied_again_is_wrong(
    copied: Copied, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where unknown sessions are let in."""
    monkeypatch.setattr(OutcomeMemory, "_refused_for_birth", lambda _self, _born: None)
    copied.put()
    copied.forget()
    copied.bench.run_s(20.0)
    (violation,) = copied.wrong
    assert "was applied again" in str(violation)


def test_what_was_certainly_refused_is_not_copied(copied: Copied) -> None:
    """Whatever stands between has handed that answer on, and does not try again behind it."""
    copied.cluster.machine.kill()
    task = copied.put()
    assert copied.lost(task) is False
    copied.cluster.machine.boot()
    copied.bench.run_s(20.0)
    assert copied.client_network.copies == 0
