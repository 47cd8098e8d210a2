"""When the client tries again, when it must not, and what it believes in the end."""

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest
from fake_server import (
    Behaviour,
    Received,
    answer,
    drip,
    get_answer,
    hang_up,
    hang_up_in_the_body,
    hang_up_in_the_head,
    nobody,
    problem,
    put_answer,
    reset,
    serving,
    silent,
)

from raftkv.client import (
    AccessError,
    BusyError,
    Client,
    DefiniteError,
    DiskFullError,
    PreconditionFailedError,
    Put,
    RaftkvError,
    ServerError,
    TooLargeError,
    UnavailableError,
    UnknownOutcomeError,
    answers,
    attempts,
    batches,
    calls,
)
from raftkv.client.answers import Answer
from raftkv.client.attempts import FailedAttempt, Lost
from raftkv.client.calls import Call, Caller
from raftkv.client.endpoints import Endpoints
from raftkv.client.session import SessionPool
from raftkv.client.transport import Transport

LOSSES = [hang_up, hang_up_in_the_head, hang_up_in_the_body, reset]
NO_LEADER = problem(503, "no_leader", definite=True, retry_after_ms=1)
UNKNOWN = problem(504, "unknown", definite=False)


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attempts, "BACKOFF_FIRST_S", 0.001)


@pytest.mark.parametrize("loss", LOSSES)
def test_a_write_whose_answer_is_lost_is_sent_again_under_the_same_number(
    loss: Behaviour,
) -> None:
    """Wherever the connection breaks, the repetition carries the session and sequence."""
    with serving(loss, put_answer(revision=9)) as server, Client(server.url) as client:
        assert client.put("k", b"v").revision == 9
    first, second = server.received
    assert first.headers["raftkv-session"] == second.headers["raftkv-session"]
    assert (first.method, first.target, first.body) == (second.method, second.target, second.body)


@pytest.mark.parametrize("loss", LOSSES)
def test_a_write_without_idempotency_is_not_sent_again(loss: Behaviour) -> None:
    """Wherever the connection breaks, one attempt is made and the outcome is called unknown."""
    with (
        serving(loss) as server,
        Client(server.url, idempotent=False) as client,
        pytest.raises(UnknownOutcomeError),
    ):
        client.put("k", b"v")
    assert len(server.received) == 1
    assert "raftkv-session" not in server.received[0].headers


def test_a_write_without_idempotency_is_sent_again_after_a_definite_refusal() -> None:
    """A refusal that says definite cannot have been applied, so repeating it is safe."""
    with serving(NO_LEADER, put_answer()) as server, Client(server.url, idempotent=False) as c:
        assert c.put("k", b"v").created


@pytest.mark.parametrize(
    "refusal",
    [
        problem(503, "unavailable", definite=False),
        answer(502, b"Bad Gateway", Content_Type="text/html"),
    ],
)
def test_a_refusal_that_does_not_say_definite_counts_as_unknown(refusal: Behaviour) -> None:
    """A 5xx without definite: true, and one without a problem document, may be applied."""
    with (
        serving(refusal) as server,
        Client(server.url, idempotent=False) as client,
        pytest.raises(UnknownOutcomeError),
    ):
        client.delete("k")


def test_once_unknown_a_later_definite_refusal_does_not_make_it_definite() -> None:
    """The refusal speaks for its own attempt; the lost one may have been applied."""
    too_large = problem(413, "too_large", definite=True)
    with (
        serving(hang_up, too_large) as server,
        Client(server.url) as client,
        pytest.raises(UnknownOutcomeError, match="then: about too_large"),
    ):
        client.put("k", b"v")


def test_once_unknown_a_failed_precondition_is_the_answer() -> None:
    """The shard remembers the outcome under the number: 412 is the write's own result."""
    failed = problem(412, "precondition", definite=True, revision=12)
    with (
        serving(hang_up, failed) as server,
        Client(server.url) as client,
        pytest.raises(PreconditionFailedError) as caught,
    ):
        client.cas("k", b"v", revision=11)
    assert caught.value.current_revision == 12
    assert [request.headers["if-match"] for request in server.received] == ['"11"', '"11"']


def test_unknown_until_the_time_is_up_is_unknown() -> None:
    """When every attempt ends without knowledge the caller is told so, in time."""
    with serving(*[UNKNOWN] * 3, silent) as server, Client(server.url) as client:
        started = time.monotonic()
        with pytest.raises(UnknownOutcomeError):
            client.put("k", b"v", timeout_s=0.3)
        assert time.monotonic() - started < 1


def test_unknown_then_success_is_success() -> None:
    """The write's own idempotency makes the repetition's answer the answer."""
    with serving(UNKNOWN, put_answer(3, 2)) as server, Client(server.url) as client:
        assert client.put("k", b"v").version == 2


def test_an_unknown_write_is_not_repeated_once_its_number_may_be_forgotten(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Past the window in which outcomes are remembered a repetition could apply it twice."""
    monkeypatch.setattr(calls, "RESEND_WINDOW_S", -1.0)
    with (
        serving(hang_up) as server,
        Client(server.url) as client,
        pytest.raises(UnknownOutcomeError),
    ):
        client.put("k", b"v")


@pytest.mark.parametrize("loss", LOSSES)
def test_a_failed_read_is_definite(loss: Behaviour) -> None:
    """A read changes nothing: it is repeated, and its failure is never called unknown."""
    with serving(loss, get_answer(b"x")) as server, Client(server.url) as client:
        entry = client.get("k")
    assert entry is not None
    assert entry.value == b"x"
    with Client(nobody(), timeout_s=0.05) as client, pytest.raises(UnavailableError):
        client.get("k")


def test_a_node_that_refuses_connections_is_left_for_the_next_one() -> None:
    """Nothing was sent, so even a write without idempotency goes on to another node."""
    with serving(*[put_answer()] * 6) as server:
        for _ in range(6):  # the first endpoint is chosen at random
            with Client([nobody(), server.url], idempotent=False) as client:
                assert client.put("k", b"v").revision == 7


def test_a_frozen_node_is_left_after_the_time_of_one_attempt() -> None:
    """A node that accepts and says nothing costs one attempt, not the whole deadline."""
    with serving(silent) as frozen, serving(put_answer(), put_answer()) as alive:
        client = Client([frozen.url, alive.url], attempt_timeout_s=0.2, timeout_s=5)
        client._endpoints._current = 0
        started = time.monotonic()
        client.put("k", b"v")
        assert 0.15 < time.monotonic() - started < 2
        # Suspected now, the frozen node is not asked again.
        client.put("k", b"w")
        client.close()


def test_without_any_node_the_failure_is_definite_and_in_time() -> None:
    """Nothing was sent by any attempt."""
    started = time.monotonic()
    with Client([nobody(), nobody()], timeout_s=0.3) as client, pytest.raises(UnavailableError):
        client.put("k", b"v")
    assert time.monotonic() - started < 1


@pytest.mark.parametrize("coalesce", [True, False])
@pytest.mark.parametrize("nodes", [1, 3])
def test_when_every_node_refuses_a_call_ends(nodes: int, coalesce: bool) -> None:  # noqa: FBT001
    """Each is asked once more; the ten seconds that are left are not waited for."""
    with Client([nobody() for _ in range(nodes)], coalesce=coalesce) as client:
        counts = _count_attempts(client)
        started = time.monotonic()
        for call in (lambda: client.get("k"), lambda: client.put("k", b"v"), client.status):
            with pytest.raises(UnavailableError, match="Connection refused"):
                call()
            assert counts.pop() == 2 * nodes
        assert time.monotonic() - started < 3


def _count_attempts(client: Client) -> list[int]:
    """How many attempts each call makes, as the last number of a list."""
    counts: list[int] = []
    attempt, repeat = client._caller.attempt, client._caller.repeat

    def counted(call: Call, deadline: float) -> Any:
        counts[-1] += 1
        return attempt(call, deadline)

    def begun(*arguments: Any, **named: Any) -> Any:
        counts.append(0)
        return repeat(*arguments, **named)

    client._caller.attempt = counted  # type: ignore[method-assign]
    client._caller.repeat = begun  # type: ignore[method-assign]
    return counts


def test_a_node_that_may_have_a_write_is_asked_for_it_though_all_refuse_now() -> None:
    """The write is of unknown outcome, so it goes on until its time is up."""

    def die(_request: Received, _connection: socket.socket) -> bool:
        server.close()
        return False

    with serving(die) as server, Client(server.url) as client:
        counts = _count_attempts(client)
        with pytest.raises(UnknownOutcomeError, match="Connection refused"):
            client.put("k", b"v", timeout_s=0.5)
        assert counts.pop() > 3


def test_a_node_that_comes_back_between_two_refusals_is_found() -> None:
    """What it refused before it answered counts no more."""
    now = 0.0
    endpoints = Endpoints(["http://a", "http://b"], clock=lambda: now)
    for _ in range(2):
        endpoints.refused("http://a", for_good=False)
    endpoints.refused("http://b", for_good=True)
    assert endpoints.all_refuse_since(0.0)
    assert not endpoints.all_refuse_since(0.1)
    endpoints.answered("http://a")
    endpoints.refused("http://a", for_good=False)
    assert not endpoints.all_refuse_since(0.0)


@pytest.mark.parametrize("nodes", [1, 2])
def test_an_unknown_host_ends_a_call(nodes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is asked once; with another node the call goes on there."""

    def unknown(*_arguments: object, **_named: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    urls = [f"http://host{number}.invalid:8000" for number in range(nodes)]
    with Client(urls) as client, monkeypatch.context() as patch:
        patch.setattr(socket, "getaddrinfo", unknown)
        counts = _count_attempts(client)
        with pytest.raises(UnavailableError, match="Name or service not known"):
            client.get("k")
        assert counts == [nodes]


def test_a_node_among_unknown_hosts_is_found() -> None:
    """One wrong name in a list does not end a call."""
    with serving(*[get_answer()] * 4) as server:
        for _ in range(4):  # the first endpoint is chosen at random
            with Client(["http://host.invalid:1", server.url]) as client:
                assert client.get("k") is not None


def tls_alert(_request: Received, connection: socket.socket) -> bool:
    """What a server for TLS answers to plain HTTP."""
    connection.sendall(b"\x15\x03\x03\x00\x02\x02\x32")
    return False


def test_the_wrong_scheme_ends_a_call_and_is_definite() -> None:
    """Neither side has understood the other, so nothing was done; asking again gives the same."""
    with serving(tls_alert) as server, Client(server.url, idempotent=False) as client:
        with pytest.raises(UnavailableError, match="BadStatusLine"):
            client.put("k", b"v")
        assert len(server.received) == 1
    with tls_answered(b"HTTP/1.1 400 Bad Request\r\n\r\n") as url, Client(url) as client:
        counts = _count_attempts(client)
        with pytest.raises(UnavailableError, match="SSL"):
            client.put("k", b"v")
        assert counts == [1]


def test_a_connection_that_ends_before_tls_stands_is_definite() -> None:
    """The request is sent after the handshake; a server that starts may do better next time."""
    with tls_answered(b"") as url, Client(url, idempotent=False) as client:
        counts = _count_attempts(client)
        with pytest.raises(UnavailableError, match="https://"):
            client.put("k", b"v", timeout_s=0.3)
        assert counts.pop() > 1


def test_who_waits_is_told_for_what(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once a call, after a second: the latest failure, or the node that has not answered yet."""
    monkeypatch.setattr(calls, "WAIT_SAID_S", 0.05)
    told: list[str] = []

    def tell(error: RaftkvError) -> None:
        told.append(str(error))

    slow = problem(503, "no_leader", definite=True, retry_after_ms=200)
    with (
        serving(put_answer(), slow, put_answer(), silent) as server,
        Client(server.url, on_wait=tell) as client,
    ):
        client.put("k", b"v")
        assert told == []
        client.put("k", b"v")
        assert told == ["about no_leader"]
        with pytest.raises(UnavailableError):
            client.get("k", timeout_s=0.3)
    assert told[1:] == [f"{server.url}: no answer yet"]


@contextlib.contextmanager
def tls_answered(answer: bytes) -> Iterator[str]:
    """A URL for TLS at which every first message is answered with this and the end."""

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                with connection:
                    connection.recv(4096)
                    connection.sendall(answer)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield "https://{}:{}".format(*listener.getsockname())
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


def test_the_deadline_holds_against_an_answer_that_drips() -> None:
    """Each byte comes in time, the whole does not: the call ends by its deadline."""
    with serving(drip) as server, Client(server.url, timeout_s=0.3) as client:
        started = time.monotonic()
        with pytest.raises(UnavailableError):
            client.get("k")
        assert time.monotonic() - started < 1


def test_retry_after_is_honoured_within_the_deadline() -> None:
    """The pause is at least what the server asks; one longer than the deadline ends the call."""
    busy = problem(429, "busy", definite=True, retry_after_ms=200)
    with serving(busy, put_answer()) as server, Client(server.url) as client:
        started = time.monotonic()
        client.put("k", b"v")
        assert time.monotonic() - started >= 0.2
    very_busy = problem(429, "busy", definite=True, retry_after_ms=60_000)
    with serving(very_busy) as server, Client(server.url, timeout_s=5) as client:
        started = time.monotonic()
        with pytest.raises(BusyError):
            client.put("k", b"v")
        assert time.monotonic() - started < 1


def test_the_header_retry_after_is_understood_without_a_document() -> None:
    """Something between client and server may say it in the header only."""
    busy = Answer(429, {"retry-after": "2"}, b"")
    assert answers.retry_after_s(answers.problem_of(busy), busy) == 2


def test_the_server_is_told_the_time_that_is_left() -> None:
    """It gives up a little earlier than the client, so that its own account arrives."""
    with serving(put_answer()) as server, Client(server.url, idempotent=False) as client:
        client.put("k", b"v", timeout_s=2.0)
    assert 1500 < int(server.received[0].headers["raftkv-timeout-ms"]) <= 1800


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (401, "unauthorized", AccessError),
        (403, "forbidden", AccessError),
        (413, "too_large", TooLargeError),
        (507, "disk_full", DiskFullError),
    ],
)
def test_each_definite_refusal_has_its_exception(
    status: int, code: str, kind: type[DefiniteError]
) -> None:
    """The exception is typed, definite, and carries the server's words and status."""
    refusal = problem(status, code, definite=True, retry_after_ms=60_000)
    with (
        serving(refusal) as server,
        Client(server.url) as client,
        pytest.raises(kind, match=f"about {code}") as caught,
    ):
        client.put("k", b"v")
    assert caught.value.status == status


def test_a_success_that_is_no_answer_of_raftkv_is_not_trusted() -> None:
    """A captive portal's 200 is no proof of a write, and none of a read."""
    portal = answer(200, b"<html>", Content_Type="text/html")
    with serving(portal, portal) as server, Client(server.url) as client:
        with pytest.raises(UnknownOutcomeError):
            client.put("k", b"v")
        with pytest.raises(ServerError):
            client.get("k")


class _LostThenBusy:
    """A transport: the first attempt is carried out and its answer lost; then a queue is full."""

    def __init__(self) -> None:
        self.sent = 0

    def send(self, *_: object, **__: object) -> Answer:
        """Answer as said."""
        self.sent += 1
        if self.sent == 1:
            raise Lost("the answer did not come")
        busy = {"op": "put", "status": 429, "code": "busy", "detail": "full", "definite": True}
        body = msgspec.msgpack.encode({"results": [busy]})
        return Answer(200, {"content-type": "application/msgpack"}, body)


def test_a_batch_is_not_called_refused_after_a_lost_attempt() -> None:
    """What was refused in the last answer may have been applied by the attempt before it."""
    caller = Caller(
        Endpoints(["http://a:1", "http://b:1"]),
        cast("Transport", _LostThenBusy()),
        attempt_timeout_s=0.1,
        headers={},
        sleep=lambda _: None,
    )
    [result] = batches.run_batch(caller, SessionPool(), [Put(b"k", b"v")], 0.3)
    assert isinstance(result, UnknownOutcomeError)


def _forgotten(born_after: int | None) -> Behaviour:
    members = {} if born_after is None else {"born_after": born_after}
    return problem(409, "forgotten", definite=False, **members)


LATER = 2**51


def test_a_write_whose_session_was_forgotten_goes_on_in_another() -> None:
    """The refused copy was the only one and is young: it was not applied and never will be."""
    with serving(_forgotten(LATER), put_answer(9)) as server, Client(server.url) as client:
        assert client.put("k", b"v").revision == 9
    first, second = (request.headers["raftkv-session"].split(";") for request in server.received)
    assert first[0] != second[0]
    assert int(first[3]) <= LATER < int(second[3])


def test_a_transaction_whose_session_was_forgotten_goes_on_in_another() -> None:
    """It never shares a request, and is renewed as others are."""
    done = msgspec.msgpack.encode({"succeeded": True, "revision": 3, "results": []})
    body = answer(200, done, Content_Type="application/msgpack")
    with serving(_forgotten(LATER), body) as server, Client(server.url) as client:
        assert client.txn().revision == 3
    first, second = (request.headers["raftkv-session"].split(";") for request in server.received)
    assert first[0] != second[0]


def test_a_write_that_was_sent_before_and_is_forgotten_is_unknown() -> None:
    """The copy that was lost may have been applied: no other number may be tried."""
    with (
        serving(hang_up, _forgotten(LATER)) as server,
        Client(server.url) as client,
        pytest.raises(UnknownOutcomeError, match="forgotten"),
    ):
        client.put("k", b"v")
    assert len(server.received) == 2


@pytest.mark.parametrize("born_after", [None, 5])
def test_a_write_refused_for_another_reason_than_its_birth_is_unknown(
    born_after: int | None,
) -> None:
    """Below the watermark, or born later than what was forgotten: it may have been applied."""
    with (
        serving(_forgotten(born_after)) as server,
        Client(server.url) as client,
        pytest.raises(UnknownOutcomeError),
    ):
        client.put("k", b"v")
    assert len(server.received) == 1


def test_a_refusal_that_comes_late_speaks_for_a_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy may have sent the write twice: one applied and forgotten, the other refused."""
    monkeypatch.setattr(calls, "RESEND_WINDOW_S", -1.0)
    with (
        serving(_forgotten(LATER)) as server,
        Client(server.url) as client,
        pytest.raises(UnknownOutcomeError),
    ):
        client.put("k", b"v")
    assert len(server.received) == 1


def test_sessions_that_are_always_refused_end_with_the_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The second refusal is not answered without a pause; definite, as no copy was applied."""
    monkeypatch.setattr(attempts, "BACKOFF_FIRST_S", 1.0)
    with (
        serving(_forgotten(LATER), _forgotten(LATER + 2**40)) as server,
        Client(server.url) as client,
        pytest.raises(UnavailableError, match="session was forgotten"),
    ):
        client.put("k", b"v", timeout_s=0.4)
    assert len(server.received) == 2


class _Slept:
    """A clock that jumps when the client pauses, as one that counts sleep does."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, module: object) -> None:
        self._ahead_s = 0.0
        monkeypatch.setattr(module, "boot_s", lambda: time.monotonic() + self._ahead_s)

    def sleep(self, _seconds: float) -> None:
        """The machine is suspended for longer than servers remember."""
        self._ahead_s += 200.0


def test_a_machine_that_slept_in_a_pause_does_not_send_an_unknown_write_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its time goes on while it sleeps; afterwards the outcome is unknown."""
    clock = _Slept(monkeypatch, calls)
    with serving(hang_up) as server:
        caller = Caller(
            Endpoints(server.url),
            Transport(ca=None, connections=1, connect_timeout_s=1.0),
            attempt_timeout_s=2.0,
            headers={},
            sleep=clock.sleep,
        )
        with pytest.raises(UnknownOutcomeError):
            caller.run(Call("PUT", "/v1/kv/k", repeatable=True), timeout_s=1000.0)
    assert len(server.received) == 1


def test_a_machine_that_slept_does_not_send_a_batch_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As a single write: what had no answer keeps what is known of it."""
    clock = _Slept(monkeypatch, batches)
    monkeypatch.setattr(batches, "time", SimpleNamespace(sleep=clock.sleep))
    refused = {"status": 504, "code": "unknown", "definite": False}
    body = msgspec.msgpack.encode({"results": [refused]})
    with (
        serving(answer(200, body, Content_Type="application/msgpack")) as server,
        Client(server.url, timeout_s=1000.0) as client,
    ):
        (result,) = client.batch([Put("k", b"v")])
    assert isinstance(result, UnknownOutcomeError)
    assert len(server.received) == 1


def test_only_the_forgotten_writes_of_a_batch_go_on_in_another_session() -> None:
    """One that may have been applied keeps its number; one that is answered is not sent again."""
    unknown = {"status": 504, "code": "unknown", "definite": False}
    forgotten = {"status": 409, "code": "forgotten", "definite": False, "born_after": LATER}
    done = {"op": "put", "status": 200, "revision": 5, "version": 1}
    script = [
        answer(
            200, msgspec.msgpack.encode({"results": results}), Content_Type="application/msgpack"
        )
        for results in ([forgotten, unknown, done, forgotten], [done, done, done])
    ]
    with serving(*script) as server, Client(server.url) as client:
        results = client.batch([Put(f"k{n}", b"v") for n in range(4)])
    assert [getattr(result, "revision", result) for result in results] == [5, 5, 5, 5]
    first, second = (msgspec.msgpack.decode(r.body)["operations"] for r in server.received)
    old, new = first[0]["session"], second[0]["session"]
    assert [member["key"] for member in second] == [b"k0", b"k1", b"k3"]
    assert [member["session"]["id"] for member in second] == [new["id"], old["id"], new["id"]]
    assert [member["session"]["sequence"] for member in second] == [1, 2, 4]
    assert old["born"] <= LATER < new["born"]


def test_a_write_of_a_batch_that_may_have_been_applied_and_is_forgotten_is_unknown() -> None:
    """The request was lost once: what the second copy is told speaks for itself only."""
    forgotten = {"status": 409, "code": "forgotten", "definite": False, "born_after": LATER}
    body = msgspec.msgpack.encode({"results": [forgotten]})
    script = (hang_up, answer(200, body, Content_Type="application/msgpack"))
    with serving(*script) as server, Client(server.url) as client:
        (result,) = client.batch([Put("k", b"v")])
    assert isinstance(result, UnknownOutcomeError)
    assert len(server.received) == 2


DOWN = FailedAttempt(
    UnavailableError("http://n2: Connection refused"),
    definite=True,
    transient=True,
    node_is_suspect=True,
)
NO_LEADER_SAID = FailedAttempt(
    UnavailableError("shard 0 has no reachable leader", status=503), definite=True, transient=True
)


def test_what_a_node_said_explains_more_than_that_another_is_down(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whichever was asked last: with a quorum lost one node says what is wrong, others refuse."""
    said = iter([NO_LEADER_SAID, DOWN, DOWN])
    monkeypatch.setattr(Caller, "attempt", lambda *_: next(said, DOWN))
    with Client([nobody(), nobody()], timeout_s=0.1) as client:
        monkeypatch.setattr(Endpoints, "all_refuse_since", lambda *_: False)
        with pytest.raises(UnavailableError) as caught:
            client.get("k")
    assert caught.value.status == 503
