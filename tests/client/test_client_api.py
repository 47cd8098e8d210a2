"""Every call of the client against the real front end and the real state machine."""

import hashlib
from collections.abc import Iterator

import pytest
from fake_server import answer, get_answer, nobody, serving
from front_end import FrontEnd, front_end

from raftkv import client as client_package
from raftkv.client import (
    AccessError,
    Client,
    Compare,
    Delete,
    DeleteResult,
    Get,
    InvalidRequestError,
    KeyValue,
    NotFoundError,
    NotModified,
    PreconditionFailedError,
    Put,
    PutResult,
    RaftkvError,
    Range,
    RangeResult,
    ServerError,
    TooLargeError,
    UnavailableError,
    batches,
)
from raftkv.client.codec import key_target
from raftkv.core.operations import REVISION_LIMIT, Command, Forget, Refused, SessionKey
from raftkv.rpc.messages import (
    BatchRequest,
    BatchResult,
    Failure,
    GetRequest,
    Request,
    Response,
    TransferRequest,
    WriteRequest,
)
from raftkv.rpc.web_config import TokenHash

AWKWARD_KEYS = [
    b"plain",
    b"a/b//c",
    b".",
    b"..",
    b"../../etc/passwd",
    b"%2F%00",
    b"a b+c?d#e&f=g",
    b"\x00",
    b"\xff\xfe",
    "grüße".encode(),
    b"x" * 1024,
    bytes(range(256)),
]


@pytest.fixture
def served() -> Iterator[FrontEnd]:
    """A front end with an empty store."""
    with front_end() as made:
        yield made


@pytest.fixture
def client(served: FrontEnd) -> Iterator[Client]:
    """A client of it."""
    with Client(served.url) as made:
        yield made


def test_everything_that_is_exported_exists() -> None:
    """``__all__`` is sorted and true."""
    assert client_package.__all__ == sorted(client_package.__all__)
    assert all(hasattr(client_package, name) for name in client_package.__all__)


@pytest.mark.parametrize("key", AWKWARD_KEYS)
def test_every_key_round_trips(client: Client, key: bytes) -> None:
    """Whatever bytes a key has, what was put under it is read, listed and deleted."""
    created = client.put(key, b"value of " + key)
    entry = client.get(key)
    assert entry == KeyValue(key, b"value of " + key, created.revision, 1, created.revision)
    assert [found.key for found in client.scan()] == [key]
    assert client.delete(key).deleted
    assert client.get(key) is None


def test_no_key_looks_like_a_relative_path() -> None:
    """Proxies and URL libraries resolve dots, so a key of dots is sent escaped."""
    assert key_target("..") == "/v1/kv/%2E%2E"
    assert key_target("a.b/..") == "/v1/kv/a.b%2F.."


@pytest.mark.parametrize("value", [b"", b"\x00", b"\xff" * 1000, b"x" * 2**20])
def test_every_value_round_trips(client: Client, value: bytes) -> None:
    """Empty, binary and largest values come back as they went in, by get and by scan."""
    client.put("k", value)
    entry = client.get("k")
    assert entry is not None
    assert entry.value == value
    assert next(client.scan("k")).value == value


def test_text_is_utf8(client: Client) -> None:
    """A str is its UTF-8 bytes, as key and as value."""
    client.put("schlüssel", "wert €")
    entry = client.get("schlüssel".encode())
    assert entry is not None
    assert entry.value == "wert €".encode()


@pytest.mark.parametrize("wrong", [5, None, 1.5, [1, 2], {"a": 1}])
def test_what_is_neither_bytes_nor_text_is_refused(client: Client, wrong: object) -> None:
    """``bytes(5)`` is five zeros: a number must not become a value that nobody meant."""
    with pytest.raises(TypeError, match="keys and values are bytes or str, not"):
        client.put("counter", wrong)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="keys and values are bytes or str, not"):
        client.get(wrong)  # type: ignore[call-overload]
    with pytest.raises(TypeError, match="keys and values are bytes or str, not"):
        client.batch([Put("counter", wrong)])  # type: ignore[arg-type]
    assert client.get("counter") is None
    client.put(bytearray(b"counter"), memoryview(b"5"))  # type: ignore[arg-type]
    assert client.get("counter").value == b"5"  # type: ignore[union-attr]


def test_cas_replaces_only_what_was_read(client: Client) -> None:
    """The second of two writers that read the same revision fails and learns the new one."""
    first = client.put("k", b"1")
    second = client.cas("k", b"2", revision=first.revision)
    assert not second.created
    with pytest.raises(PreconditionFailedError) as caught:
        client.cas("k", b"3", revision=first.revision)
    assert caught.value.current_revision == second.revision
    with pytest.raises(PreconditionFailedError) as caught:
        client.cas("missing", b"3", revision=first.revision)
    assert caught.value.current_revision is None


def test_put_if_absent_creates_once(client: Client) -> None:
    """A key that exists is left alone."""
    assert client.put_if_absent("k", b"1").created
    with pytest.raises(PreconditionFailedError):
        client.put_if_absent("k", b"2")
    with pytest.raises(InvalidRequestError, match="exclude each other"):
        client.put("k", b"2", if_absent=True, if_revision=1)


def test_delete_with_a_condition(client: Client) -> None:
    """A delete of another revision fails; of a missing key it succeeds without effect."""
    put = client.put("k", b"1")
    with pytest.raises(PreconditionFailedError):
        client.delete("k", if_revision=put.revision + 1)
    assert client.delete("k", if_revision=put.revision).deleted
    assert client.delete("k") == DeleteResult(deleted=False, revision=None)


def test_revision_0_is_told_apart_from_absent(client: Client, served: FrontEnd) -> None:
    """In etcd it means that there is no such key; here the error says what means that."""
    for write in (
        lambda: client.cas("k", b"1", revision=0),
        lambda: client.delete("k", if_revision=0),
        lambda: client.batch([Put("a", b""), Put("k", b"1", if_revision=0)]),
    ):
        with pytest.raises(InvalidRequestError, match="no entry has revision 0; put_if_absent"):
            write()
    assert not served.engine.asked


@pytest.mark.parametrize("revision", [-1, REVISION_LIMIT, 10**30])
def test_a_revision_that_no_entry_can_have_is_refused_here(client: Client, revision: int) -> None:
    """In the caller's terms, and with the largest that the server knows."""
    with pytest.raises(InvalidRequestError, match=f"1 to {REVISION_LIMIT - 1}, not {revision}"):
        client.put("k", b"1", if_revision=revision)
    with pytest.raises(PreconditionFailedError):
        client.put("k", b"1", if_revision=REVISION_LIMIT - 1)


@pytest.mark.parametrize("revision", ["5", 5.0, True])
def test_a_revision_is_a_number(client: Client, revision: object) -> None:
    """Alone and in a batch, whose first operations are not sent either."""
    with pytest.raises(TypeError, match="a revision is an int, not"):
        client.cas("k", b"1", revision=revision)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="a revision is an int, not"):
        client.batch([Put("a", b""), Delete("k", if_revision=revision)])  # type: ignore[arg-type]
    assert client.get("a") is None


def test_what_is_no_operation_is_refused(client: Client, served: FrontEnd) -> None:
    """The error says what a batch and a transaction are made of."""
    with pytest.raises(TypeError, match="a batch is made of Put, Delete and Get, not str"):
        client.batch([Put("a", b""), "x"])  # type: ignore[list-item]
    with pytest.raises(
        TypeError, match="a transaction is made of Put, Delete, Get and Range, not tuple"
    ):
        client.txn(then=[("put", "a", b"")])  # type: ignore[list-item]
    with pytest.raises(TypeError, match="the conditions of a transaction are Compare, not Get"):
        client.txn([Get("a")], [Put("a", b"")])  # type: ignore[list-item]
    assert not served.engine.asked


def test_scan_goes_over_pages_in_order(client: Client) -> None:
    """Pages are fetched as needed; bounds, limit and keys_only hold over all of them."""
    keys = [f"k/{number:03}" for number in range(57)]
    client.batch([Put(key, b"v" + key.encode()) for key in reversed(keys)])
    client.put("other", b"")
    assert [entry.key.decode() for entry in client.scan("k/", page_size=10)] == keys
    assert [e.key for e in client.scan(start="k/050", end="k/052")] == [b"k/050", b"k/051"]
    limited = list(client.scan("k/", limit=25, page_size=10, keys_only=True))
    assert [entry.key.decode() for entry in limited] == keys[:25]
    assert {entry.value for entry in limited} == {b""}
    assert list(client.scan("none")) == []
    with pytest.raises(InvalidRequestError, match="excludes"):
        client.scan("k", start="a")


def test_a_batch_answers_each_operation_in_its_place(client: Client, served: FrontEnd) -> None:
    """Results, missing keys and failed conditions stand where their operation stood.

    A failed condition is an answer: nothing is sent a second time.
    """
    client.put("old", b"1")
    results = client.batch(
        [
            Put("a", b"\xff"),
            Get("old"),
            Get("missing"),
            Put("old", b"2", if_absent=True),
            Delete("old"),
            Delete("missing"),
            Get("a"),
        ]
    )
    assert isinstance(results[0], PutResult)
    assert isinstance(results[1], KeyValue)
    assert results[1].value == b"1"
    assert results[2] is None
    assert isinstance(results[3], PreconditionFailedError)
    assert results[4] == DeleteResult(deleted=True, revision=results[4].revision)  # type: ignore[union-attr]
    assert results[5] == DeleteResult(deleted=False, revision=None)
    assert isinstance(results[6], KeyValue)
    assert results[6].value == b"\xff"
    assert sum(isinstance(request, BatchRequest) for request in served.engine.asked) == 1
    assert client.batch([]) == []


def test_a_batch_sends_again_only_what_failed_for_the_moment(
    client: Client, served: FrontEnd
) -> None:
    """The operation that found no leader goes again under its number; the other does not."""
    busy = Failure("no_leader", "none", definite=True, retry_after_ms=1)
    done = served.engine.state.get(b"x")
    served.engine.answers.append(BatchResult((done, busy)))
    results = client.batch([Get("x"), Put("y", b"1")])
    assert results[0] is None
    assert isinstance(results[1], PutResult)
    first, second = (r for r in served.engine.asked if isinstance(r, BatchRequest))
    assert (len(first.operations), len(second.operations)) == (2, 1)
    assert first.operations[1] == second.operations[0]


@pytest.mark.parametrize(("fitting", "asked_most"), [(1, 20), (7, 3), (0, 31)])
def test_reads_that_are_too_much_for_one_answer_are_asked_for_in_several(
    client: Client,
    served: FrontEnd,
    monkeypatch: pytest.MonkeyPatch,
    fitting: int,
    asked_most: int,
) -> None:
    """Who merges must divide; writes beside them are done once, and each has its own answer.

    With none that fits in company, each is asked for alone in the end.
    """
    keys = [f"k{number}" for number in range(16)]
    client.batch([Put(key, key.encode()) for key in keys])
    honest = served.engine._answer
    too_much = Failure("too_large", "more than fits: ask for this key again", definite=True)

    def answer(request: Request) -> Response:
        result: Response = honest(request)
        if not isinstance(request, BatchRequest) or len(request.operations) == 1:
            return result
        assert isinstance(result, BatchResult)
        reads = 0
        results = list(result.results)
        for place, operation in enumerate(request.operations):
            if isinstance(operation, GetRequest):
                reads += 1
                if reads > fitting:
                    results[place] = too_much
        return BatchResult(tuple(results))

    monkeypatch.setattr(served.engine, "_answer", answer)
    served.engine.asked.clear()
    found = client.batch([*map(Get, keys), Put("last", b"")])
    assert [entry.value.decode() for entry in found[:16] if isinstance(entry, KeyValue)] == keys
    assert isinstance(found[16], PutResult)
    asked = [request for request in served.engine.asked if isinstance(request, BatchRequest)]
    assert len(asked) <= asked_most
    assert sum(isinstance(o, Command) for request in asked for o in request.operations) == 1


def test_a_read_that_is_too_large_alone_is_an_error_of_its_own(
    client: Client, served: FrontEnd
) -> None:
    """Its neighbours have their answers."""
    found = served.engine.state.get(b"x")
    too_much = Failure("too_large", "too large", definite=True)
    served.engine.answers += [BatchResult((found, too_much)), BatchResult((too_much,))]
    results = client.batch([Get("x"), Get("large")])
    assert results[0] is None
    assert isinstance(results[1], TooLargeError)
    assert len(served.engine.asked) == 2


def test_a_batch_of_any_size_goes_in_pieces(
    client: Client, served: FrontEnd, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each piece has numbers of its own, and everything below it may be forgotten."""
    monkeypatch.setattr(batches, "PIECE_OPERATIONS", 4)
    results = client.batch([Put(f"k{number}", b"v") for number in range(10)])
    assert all(isinstance(result, PutResult) for result in results)
    asked = [r for r in served.engine.asked if isinstance(r, BatchRequest)]
    assert [len(request.operations) for request in asked] == [4, 4, 2]
    keys = [operation.idempotency for r in asked for operation in r.operations]  # type: ignore[union-attr]
    assert all(isinstance(key, SessionKey) for key in keys)
    assert [(key.sequence, key.low) for key in keys] == [  # type: ignore[union-attr]
        *[(number, 1) for number in (1, 2, 3, 4)],
        *[(number, 5) for number in (5, 6, 7, 8)],
        *[(number, 9) for number in (9, 10)],
    ]


def test_pieces_are_bounded_in_bytes_too(
    client: Client, served: FrontEnd, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two values that are too much for one request go in two."""
    monkeypatch.setattr(batches, "PIECE_BYTES", 2000)
    client.batch([Put("a", b"x" * 1000), Put("b", b"x" * 1000)])
    assert [len(r.operations) for r in served.engine.asked if isinstance(r, BatchRequest)] == [1, 1]


def test_a_batch_keeps_what_was_answered_when_a_later_piece_fails(
    served: FrontEnd, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Results of the first piece stay; the second has its error, the third was never sent."""
    monkeypatch.setattr(batches, "PIECE_OPERATIONS", 1)
    first = served.engine.state.get(b"nothing")
    refused = Failure("no_leader", "none", definite=True, retry_after_ms=60_000)
    served.engine.answers.extend([BatchResult((first,)), refused])
    with Client(served.url, timeout_s=1) as client:
        results = client.batch([Get("a"), Get("b"), Get("c")])
    assert results[0] is None
    assert isinstance(results[1], UnavailableError)
    assert "not sent" in str(results[2])
    assert len(served.engine.asked) == 2


def test_a_transaction_takes_one_branch(client: Client) -> None:
    """Compare, then or else, with the results of the branch that ran."""
    compare = [Compare("{acc}/a", "value", "=", b"10"), Compare("{acc}/b", "version", "=", 0)]
    then = [Put("{acc}/a", b"7"), Put("{acc}/b", b"3")]
    otherwise = [Get("{acc}/a"), Get("{acc}/b")]
    refused = client.txn(compare, then, otherwise)
    assert (refused.succeeded, refused.revision, refused.results) == (False, None, (None, None))
    client.put("{acc}/a", b"10")
    done = client.txn(compare, then, otherwise)
    assert done.succeeded
    assert [result.revision for result in done.results] == [done.revision] * 2  # type: ignore[union-attr]
    there = [Compare.exists("{acc}/a"), Compare.absent("{acc}/none")]
    assert client.txn(there, [Get("{acc}/a")]).succeeded
    gone = [Compare.absent("{acc}/a")]
    assert not client.txn(gone, [Get("{acc}/a")]).succeeded
    assert not client.txn([Compare("{acc}/none", "value", "!=", b"x")], [Get("{acc}/a")]).succeeded
    with pytest.raises(InvalidRequestError, match="belong into compare"):
        client.txn(then=[Put("a", b"", if_absent=True)])


def test_a_transaction_reads_ranges(client: Client, served: FrontEnd) -> None:
    """A branch may read what a prefix or two bounds hold, in order and up to a limit."""
    client.batch([Put(f"{{o}}/{n}", b"\xff" * n) for n in range(5)])
    done = client.txn(
        then=[
            Range(prefix="{o}/", limit=2),
            Range(start="{o}/3", end=b"{o}/9", keys_only=True),
            Put("{o}/5", b""),
            Range(prefix="{o}/"),
        ]
    )
    first, keys, put, rest = done.results
    assert isinstance(first, RangeResult)
    assert isinstance(keys, RangeResult)
    assert isinstance(put, PutResult)
    assert isinstance(rest, RangeResult)
    assert ([entry.value for entry in first.entries], first.more) == ([b"", b"\xff"], True)
    assert [(e.key, e.value) for e in keys.entries] == [(b"{o}/3", b""), (b"{o}/4", b"")]
    assert (len(rest.entries), rest.more) == (6, False)
    asked = len(served.engine.asked)
    with pytest.raises(InvalidRequestError, match="prefix excludes start and end"):
        client.txn(then=[Range(prefix="{o}/", end="{o}0")])
    with pytest.raises(TypeError, match="a batch is made of Put, Delete and Get, not Range"):
        client.batch([Range(prefix="{o}/")])  # type: ignore[list-item]
    assert len(served.engine.asked) == asked


def test_a_value_that_the_caller_has_already_is_not_sent(client: Client) -> None:
    """With the revision of what was read the answer is ``NotModified`` until it changes."""
    first = client.put("k", b"1")
    assert client.get("k", if_none_match=first.revision) == NotModified(first.revision)
    second = client.put("k", b"2")
    entry = client.get("k", if_none_match=first.revision)
    assert isinstance(entry, KeyValue)
    assert (entry.value, entry.revision) == (b"2", second.revision)
    assert client.get("k", if_none_match=None) == entry
    client.delete("k")
    assert client.get("k", if_none_match=second.revision) is None
    with pytest.raises(InvalidRequestError, match="no entry has revision 0"):
        client.get("k", if_none_match=0)


@pytest.mark.parametrize("status", [204, 304])
def test_an_answer_that_was_not_asked_for_is_not_a_missing_key(status: int) -> None:
    """Something between the client and the server made it up."""
    with (
        serving(answer(status)) as server,
        Client(server.url) as client,
        pytest.raises(ServerError, match="not of a raftkv server"),
    ):
        client.get("k")


@pytest.mark.parametrize("coalesce", [True, False])
def test_an_error_names_its_key(served: FrontEnd, coalesce: bool) -> None:  # noqa: FBT001
    """As an attribute, and in the line that a log shows: a program works on many keys."""
    with Client(served.url, coalesce=coalesce) as client:
        client.put("stock/17", b"1")
        for call in (
            lambda: client.put_if_absent("stock/17", b""),
            lambda: client.cas("stock/17", b"", revision=99),
            lambda: client.delete("stock/17", if_revision=99),
            lambda: client.batch([Delete("stock/17", if_revision=0)]),
        ):
            with pytest.raises(RaftkvError, match=r" \(key 'stock/17'\)$") as caught:
                call()
            assert caught.value.key == b"stock/17"
        results = client.batch([Get("a"), Put(b"\xff", b"", if_revision=1)])
        assert isinstance(results[1], RaftkvError)
        assert str(results[1]).endswith(r" (key b'\xff')")
        with pytest.raises(InvalidRequestError, match=r"\(key 'xxx[x]+'\.\.\., 2000 bytes\)"):
            client.batch([Get("x" * 2000)])
        with pytest.raises(InvalidRequestError) as caught:
            client.txn(then=[Put("a", b"", if_absent=True), Put("b", b"")])
        assert caught.value.key is None


def test_operations_that_share_an_error_have_one_each(
    served: FrontEnd, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What failed whole failed for every key in it."""
    monkeypatch.setattr(batches, "PIECE_OPERATIONS", 2)
    refused = Failure("no_leader", "none", definite=True, retry_after_ms=60_000)
    first = served.engine.state.get(b"nothing")
    served.engine.answers.extend([BatchResult((first, first)), refused])
    with Client(served.url, timeout_s=1) as client:
        results = client.batch([Get(key) for key in "abcdef"])
    assert [getattr(result, "key", None) for result in results] == [
        *(None, None, b"c", b"d", b"e", b"f")
    ]


def test_without_endpoints_the_environment_names_the_cluster(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Address and token belong together: none is sent to whom the program chose itself."""
    for name in ("RAFTKV_ENDPOINTS", "RAFTKV_TOKEN", "RAFTKV_CA"):
        monkeypatch.delenv(name, raising=False)
    assert Client().endpoints == ("http://127.0.0.1:8000",)
    monkeypatch.setenv("RAFTKV_ENDPOINTS", "http://a:1,http://b:2 http://c:3")
    assert Client().endpoints == ("http://a:1", "http://b:2", "http://c:3")
    monkeypatch.setenv("RAFTKV_ENDPOINTS", ", ,")
    with pytest.raises(ValueError, match="RAFTKV_ENDPOINTS: ', ,' is no list of URLs"):
        Client()
    monkeypatch.setenv("RAFTKV_TOKEN", "sesame")
    with serving(*[get_answer()] * 3) as server:
        monkeypatch.setenv("RAFTKV_ENDPOINTS", server.url)
        for client in (Client(), Client(token="mine"), Client(server.url)):
            with client:
                client.get("k")
    sent = [received.headers.get("authorization") for received in server.received]
    assert sent == ["Bearer sesame", "Bearer mine", None]
    monkeypatch.setenv("RAFTKV_CA", "/dev/null")
    with pytest.raises(ValueError, match="/dev/null: no PEM certificate of a CA"):
        Client()


def test_a_client_that_could_never_reach_anybody_is_not_made() -> None:
    """A bad token or CA is found now, and the token is not shown."""
    with pytest.raises(ValueError, match="characters that a token cannot have") as caught:
        Client(nobody(), token="se\nsame")
    assert "same" not in str(caught.value)
    with pytest.raises(ValueError, match="nowhere: no PEM certificate"):
        Client("https://127.0.0.1:1", ca="nowhere")


def test_writes_carry_the_session_and_a_repetition_is_applied_once(
    client: Client, served: FrontEnd
) -> None:
    """A lost answer, then the same number: the state machine answers from memory."""
    served.engine.answers.append(Failure("unknown", "the link was lost"))
    client.put("k", b"1")
    first, second = (r for r in served.engine.asked if isinstance(r, WriteRequest))
    assert first.command == second.command
    assert isinstance(first.command.idempotency, SessionKey)


def test_stale_reads_ask_for_them(client: Client, served: FrontEnd) -> None:
    """Consistency and age reach the engine."""
    client.get("k", consistency="stale", max_age_ms=500)
    list(client.scan(consistency="stale"))
    get, scan = served.engine.asked
    assert (get.consistency, get.max_age_ms) == ("stale", 500)  # type: ignore[union-attr]
    assert scan.consistency == "stale"  # type: ignore[union-attr]


def test_operators_get_what_the_engine_says(client: Client, served: FrontEnd) -> None:
    """Status, nodes, shards, explain and transfer answer with the engine's facts."""
    assert client.status()["cluster"] == "test"
    assert client.status("local")["node"] == "n1"
    assert [row["name"] for row in client.nodes()["nodes"]] == ["n1", "n2", "n3"]
    assert client.shards()["shards"][0]["leader"] == "n1"
    assert client.shard(0)["term"] == 7
    assert client.explain(b"a/\xff")["key_hex"] == b"a/\xff".hex()
    assert client.transfer_leader(0, "n2")["leader"] == "n2"
    client.transfer_leader(0, "n2", for_s=60.0)
    assert served.engine.asked[-1] == TransferRequest(0, "n2", 60.0)
    with pytest.raises(NotFoundError):
        client.transfer_leader(99)


def test_a_key_of_a_length_that_no_server_takes_is_refused_here(client: Client) -> None:
    """It costs no request."""
    with pytest.raises(InvalidRequestError, match="1 to 1024 bytes, not 0"):
        client.get(b"")
    with pytest.raises(InvalidRequestError, match="not 1025"):
        client.put(b"x" * 1025, b"")


def test_a_token_opens_the_door() -> None:
    """Without it, or with another one, every call is an AccessError."""
    digest = hashlib.sha256(b"sesame").hexdigest()
    with front_end(tokens=(TokenHash(sha256=digest, role="read"),)) as served:
        for token in (None, "wrong"):
            with Client(served.url, token=token) as client, pytest.raises(AccessError):
                client.get("k")
        with Client(served.url, token="sesame") as client:
            assert client.get("k") is None
            assert client.batch([Get("k"), Get("l")]) == [None, None]
            with pytest.raises(AccessError):
                client.put("k", b"1")


def test_connections_are_kept_and_a_closed_client_opens_new_ones() -> None:
    """One connection serves many calls; close() is not the end."""
    with serving(*[get_answer()] * 21) as server, Client(server.url) as client:
        for _ in range(20):
            client.get("k")
        (pool,) = client._transport._pools.values()
        assert pool.num_connections == 1
        client.close()
        assert client.get("k") is not None


@pytest.mark.parametrize(
    "endpoints",
    [
        [],
        "127.0.0.1:8000",
        "ftp://x",
        "http://",
        "http://x/path",
        "http://u@x",
        "http://x:port",
        "http://a,http://b",
    ],
)
def test_endpoints_that_make_no_sense_are_refused(endpoints: list[str] | str) -> None:
    """A client that could never work is not made."""
    with pytest.raises(ValueError, match=r"endpoint|URL"):
        Client(endpoints)


def test_a_copy_that_comes_after_its_session_was_forgotten_is_refused(
    client: Client, served: FrontEnd
) -> None:
    """The client goes on in another session; what a proxy held back is not applied again."""
    client.put("k", b"first")
    (late,) = served.engine.asked
    memory = served.engine.state.memory
    for names in ((), tuple(memory._sessions)):
        memory.forget(Forget((), names))
    assert client.put("k", b"second").version == 2
    assert client.delete("other").deleted is False
    assert isinstance(client.batch([Put("in a batch", b"")])[0], PutResult)
    held_back = served.engine.answer(late, 1.0).response
    assert isinstance(held_back, Refused)
    assert held_back.reason == "forgotten"
    entry = client.get("k")
    assert entry is not None
    assert entry.value == b"second"
