"""The client: one object for a whole program, safe to share between its threads."""

import contextlib
import copy
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Literal, NamedTuple, Self, TypeVar, cast, overload

from raftkv.client import codec
from raftkv.client.answers import Answer
from raftkv.client.attempts import FailedAttempt
from raftkv.client.batches import BatchResult, run_batch
from raftkv.client.calls import Call, Caller
from raftkv.client.checks import check_ca, check_key, check_revision, check_token
from raftkv.client.coalescing import Alone, Coalescer
from raftkv.client.endpoints import Endpoints, endpoints_of_environment
from raftkv.client.errors import InvalidRequestError, RaftkvError, ServerError, UnknownOutcomeError
from raftkv.client.session import Session, SessionPool, Ticket
from raftkv.client.transport import Transport
from raftkv.client.types import (
    BatchOperation,
    Bytes,
    Compare,
    Consistency,
    DeleteResult,
    KeyValue,
    NotModified,
    PutResult,
    TxnOperation,
    TxnResult,
    to_bytes,
)
from raftkv.version import __version__

SESSION_HEADER = "Raftkv-Session"

_Written = TypeVar("_Written", PutResult, DeleteResult, TxnResult)


class _Request(NamedTuple):
    """A write without its place in the session, which is new in every attempt."""

    method: str
    target: str
    headers: Mapping[str, str]
    body: bytes | None


class Client:
    """Reads and writes keys of a raftkv cluster.

    Args:
        endpoints: URLs of one or more nodes. Any node answers any request; the others are asked
            when one does not answer. Without any the environment names the cluster:
            ``RAFTKV_ENDPOINTS`` (else http://127.0.0.1:8000), and ``RAFTKV_TOKEN`` and
            ``RAFTKV_CA`` where no token or CA is given here.
        token: Bearer token, where the cluster wants one.
        ca: File with the certificate authority of the cluster's HTTPS certificates.
        timeout_s: For each call, all its attempts and pauses together.
        attempt_timeout_s: How long to wait for one node before another one is asked.
        connections: Open connections kept for each node; more are made when more threads call.
        idempotent: Give every write its place in a session, so that it can be sent again when
            an answer is lost and is still applied once. Without it a write whose answer is lost
            is not repeated and raises :class:`~raftkv.client.errors.UnknownOutcomeError`.
        coalesce: Let single-key calls that run at the same time share requests. Writes do so only
            if they are idempotent. See docs/client.md for when to turn it off.
        on_wait: Called with the latest failure, in another thread, when a call has taken a second:
            for programs before which somebody sits and waits.

    Raises:
        ValueError: An endpoint is no URL, the token cannot be in a header, or the CA's file has no
            certificate.
    """

    def __init__(
        self,
        endpoints: Sequence[str] | str | None = None,
        *,
        token: str | None = None,
        ca: str | None = None,
        timeout_s: float = 10.0,
        attempt_timeout_s: float = 2.0,
        connections: int = 16,
        idempotent: bool = True,
        coalesce: bool = True,
        on_wait: Callable[[RaftkvError], None] | None = None,
    ) -> None:
        if endpoints is None:
            # Together or not at all: a token is not sent to whom the program itself has chosen.
            endpoints = endpoints_of_environment()
            token = token or os.environ.get("RAFTKV_TOKEN") or None
            ca = ca or os.environ.get("RAFTKV_CA") or None
        check_token(token)
        check_ca(ca)
        self._endpoints = Endpoints(endpoints)
        self._transport = Transport(
            ca=ca, connections=connections, connect_timeout_s=attempt_timeout_s / 2
        )
        self._timeout_s = timeout_s
        self._session = Session() if idempotent else None
        self._batch_sessions = SessionPool() if idempotent else None
        headers = {"User-Agent": f"raftkv-python/{__version__}"}
        if token is not None:
            headers["Authorization"] = f"Bearer {token}"
        self._caller = Caller(
            self._endpoints,
            self._transport,
            attempt_timeout_s=attempt_timeout_s,
            headers=headers,
            on_wait=on_wait,
        )
        self._coalescer = (
            Coalescer(self._caller, attempt_timeout_s=attempt_timeout_s) if coalesce else None
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the idle connections. The client can still be used, and opens new ones."""
        self._transport.close()

    @property
    def endpoints(self) -> tuple[str, ...]:
        """The nodes' URLs."""
        return self._endpoints.urls

    @property
    def timeout_s(self) -> float:
        """How many seconds a call takes at most that says nothing else."""
        return self._timeout_s

    # --- single keys ----------------------------------------------------------------------------

    @overload
    def get(
        self,
        key: Bytes,
        *,
        consistency: Consistency = "linearizable",
        max_age_ms: int | None = None,
        timeout_s: float | None = None,
    ) -> KeyValue | None: ...

    @overload
    def get(
        self,
        key: Bytes,
        *,
        if_none_match: int | None,
        consistency: Consistency = "linearizable",
        max_age_ms: int | None = None,
        timeout_s: float | None = None,
    ) -> KeyValue | NotModified | None: ...

    def get(
        self,
        key: Bytes,
        *,
        if_none_match: int | None = None,
        consistency: Consistency = "linearizable",
        max_age_ms: int | None = None,
        timeout_s: float | None = None,
    ) -> KeyValue | NotModified | None:
        """Read one key; None if it does not exist.

        With the revision ``if_none_match``, of a :class:`KeyValue` that the caller still has, the
        value comes only if it is another one by now, else :class:`NotModified`. ``stale`` reads
        whatever replica is asked; ``max_age_ms`` then bounds the age.
        """
        data = check_key(key)
        check_revision(if_none_match)
        query = codec.read_query(consistency, max_age_ms)
        call = Call(
            "GET",
            codec.with_query(codec.key_target(data), query),
            headers=lambda: codec.known_headers(if_none_match),
            reads=True,
            repeatable=True,
            missing_is_answer=True,
        )

        def alone(deadline: float) -> KeyValue | NotModified | FailedAttempt | None:
            answer = self._caller.attempt(call, deadline)
            if isinstance(answer, FailedAttempt):
                return answer
            return codec.read_of(data, if_none_match, answer)

        timeout = self._timeout(timeout_s)
        try:
            if self._coalescer is None or if_none_match is not None:
                return self._caller.repeat(alone, timeout, reads=True, repeatable=True)[0]
            member = codec.GetMember(data, consistency, codec.unset_if_none(max_age_ms))
            result = self._coalescer.run(member, None, cast("Alone", alone), timeout)
        except RaftkvError as error:
            error.key = data
            raise
        return cast("KeyValue | None", result)

    def put(
        self,
        key: Bytes,
        value: Bytes,
        *,
        if_revision: int | None = None,
        if_absent: bool = False,
        timeout_s: float | None = None,
    ) -> PutResult:
        """Set a key, if its revision is ``if_revision`` or if it does not exist yet.

        Raises:
            PreconditionFailedError: The condition does not hold.
        """
        if if_absent and if_revision is not None:
            raise InvalidRequestError("if_revision and if_absent exclude each other")
        check_revision(if_revision)
        data, body = check_key(key), to_bytes(value)
        member = codec.PutMember(data, body, codec.unset_if_none(if_revision), if_absent)

        def request() -> _Request:
            headers = codec.condition_headers(if_revision=if_revision, if_absent=if_absent)
            headers["Content-Type"] = "application/octet-stream"
            return _Request("PUT", codec.key_target(data), headers, body)

        return self._write(request, codec.put_of, timeout_s, data, member)

    def put_if_absent(
        self, key: Bytes, value: Bytes, *, timeout_s: float | None = None
    ) -> PutResult:
        """Create a key.

        Raises:
            PreconditionFailedError: It exists; ``current_revision`` says with which revision.
        """
        return self.put(key, value, if_absent=True, timeout_s=timeout_s)

    def cas(
        self, key: Bytes, value: Bytes, *, revision: int, timeout_s: float | None = None
    ) -> PutResult:
        """Replace a value that has not changed since it was read (compare and set).

        ``revision`` is that of the :class:`KeyValue` that was read; :meth:`put_if_absent` is for a
        key that was not there.

        Raises:
            PreconditionFailedError: It has changed, or is gone.
        """
        return self.put(key, value, if_revision=revision, timeout_s=timeout_s)

    def delete(
        self, key: Bytes, *, if_revision: int | None = None, timeout_s: float | None = None
    ) -> DeleteResult:
        """Remove a key; removing one that does not exist is a success too.

        Raises:
            PreconditionFailedError: Its revision is not ``if_revision``.
        """
        check_revision(if_revision)
        data = check_key(key)
        member = codec.DeleteMember(data, codec.unset_if_none(if_revision))

        def request() -> _Request:
            headers = codec.condition_headers(if_revision=if_revision, if_absent=False)
            return _Request("DELETE", codec.key_target(data), headers, None)

        return self._write(request, codec.delete_of, timeout_s, data, member)

    # --- many keys ------------------------------------------------------------------------------

    def scan(
        self,
        prefix: Bytes | None = None,
        *,
        start: Bytes | None = None,
        end: Bytes | None = None,
        limit: int | None = None,
        keys_only: bool = False,
        consistency: Consistency = "linearizable",
        max_age_ms: int | None = None,
        page_size: int = 1000,
        timeout_s: float | None = None,
    ) -> Iterator[KeyValue]:
        """Iterate over keys in byte order, ``start`` included and ``end`` not.

        Pages are fetched as they are needed, each within ``timeout_s``. What comes is not one
        moment of the whole store: each page is linearizable for each shard by itself.
        """
        if prefix is not None and (start is not None or end is not None):
            raise InvalidRequestError("prefix excludes start and end")
        bounds = {"prefix": prefix, "start": start, "end": end}
        query: dict[str, Bytes] = {
            **{name: to_bytes(bound) for name, bound in bounds.items() if bound is not None},
            **codec.read_query(consistency, max_age_ms),
        }
        if keys_only:
            query["keys_only"] = "true"
        return self._pages(query, limit, page_size, timeout_s)

    def _pages(
        self, query: dict[str, Bytes], limit: int | None, page_size: int, timeout_s: float | None
    ) -> Iterator[KeyValue]:
        left = limit
        while left is None or left > 0:
            query["limit"] = str(page_size if left is None else min(page_size, left))
            answer = self._read(codec.with_query("/v1/kv", query), timeout_s)
            entries, cursor = codec.page_of(answer)
            yield from entries
            if cursor is None:
                return
            query["cursor"] = cursor
            left = None if left is None else left - len(entries)

    def batch(
        self, operations: Sequence[BatchOperation], *, timeout_s: float | None = None
    ) -> list[BatchResult]:
        """Do many independent operations with few requests; results are in their order.

        Not a transaction: each succeeds or fails by itself, so an error is a *value* in the list
        where it belongs. Only what failed for the moment is sent again.

        Raises:
            RaftkvError: Nothing was answered, and what kind of error it is holds for all.
        """
        try:
            results = run_batch(
                self._caller, self._batch_sessions, operations, self._timeout(timeout_s)
            )
        except RaftkvError as error:
            if len(operations) == 1:
                error.key = to_bytes(operations[0].key)
            raise
        return [_about(*pair) for pair in zip(operations, results, strict=True)]

    def txn(
        self,
        compare: Sequence[Compare] = (),
        then: Sequence[TxnOperation] = (),
        otherwise: Sequence[TxnOperation] = (),
        *,
        timeout_s: float | None = None,
    ) -> TxnResult:
        """If every comparison holds do ``then``, else ``otherwise``, at once or not at all.

        All keys must live in one shard: give them the same ``{tag}``.

        Raises:
            CrossShardError: They do not.
        """
        body = codec.txn_body(compare, then, otherwise)
        headers = {"Content-Type": codec.MSGPACK, "Accept": codec.MSGPACK}
        request = _Request("POST", "/v1/txn", headers, body)
        return self._write(lambda: request, codec.txn_of, timeout_s, None)

    # --- operators ------------------------------------------------------------------------------

    def status(
        self,
        scope: Literal["local", "cluster"] = "cluster",
        *,
        timeout_s: float | None = None,
    ) -> dict[str, Any]:
        """What the cluster looks like; ``local`` is what the node that answers knows alone."""
        return codec.document_of(self._read(f"/v1/status?scope={scope}", timeout_s))

    def nodes(self, *, timeout_s: float | None = None) -> dict[str, Any]:
        """All nodes, and which of them answered."""
        return codec.document_of(self._read("/v1/nodes", timeout_s))

    def shards(self, *, timeout_s: float | None = None) -> dict[str, Any]:
        """All shards with leader and replicas."""
        return codec.document_of(self._read("/v1/shards", timeout_s))

    def shard(self, shard: int, *, timeout_s: float | None = None) -> dict[str, Any]:
        """One shard in detail."""
        return codec.document_of(self._read(f"/v1/shards/{shard}", timeout_s))

    def explain(self, key: Bytes, *, timeout_s: float | None = None) -> dict[str, Any]:
        """Where a key lives and why."""
        target = codec.key_target(key).replace("/v1/kv/", "/v1/explain/", 1)
        return codec.document_of(self._read(target, timeout_s))

    def transfer_leader(
        self,
        shard: int,
        to: str | None = None,
        *,
        for_s: float | None = None,
        timeout_s: float | None = None,
    ) -> dict[str, Any]:
        """Hand the leadership of a shard to node ``to``; None is the preferred node.

        On ``to`` it stays for ``for_s`` seconds, or until that node stops.
        """
        call = Call(
            "POST",
            f"/v1/shards/{shard}/transfer-leader",
            headers=lambda: {"Content-Type": "application/json"},
            body=codec.transfer_body(to, for_s),
            # Asking twice for the same leader is asking once.
            repeatable=True,
        )
        return codec.document_of(self._caller.run(call, self._timeout(timeout_s)))

    # --- shared ---------------------------------------------------------------------------------

    def _timeout(self, timeout_s: float | None) -> float:
        return self._timeout_s if timeout_s is None else timeout_s

    def _read(self, target: str, timeout_s: float | None) -> Answer:
        call = Call("GET", target, reads=True, repeatable=True)
        return self._caller.run(call, self._timeout(timeout_s))

    def _write(
        self,
        request: Callable[[], _Request],
        decode: Callable[[Answer], _Written],
        timeout_s: float | None,
        key: bytes | None,
        member: codec.Member | None = None,
    ) -> _Written:
        """Carry out a write of ``key``; a ``member`` may travel in a batch with others."""
        try:
            return self._written(request, decode, timeout_s, member)
        except RaftkvError as error:
            error.key = key
            raise

    def _written(
        self,
        request: Callable[[], _Request],
        decode: Callable[[Answer], _Written],
        timeout_s: float | None,
        member: codec.Member | None,
    ) -> _Written:
        with (
            contextlib.nullcontext() if self._session is None else self._session.writes() as ticket
        ):

            def alone(deadline: float) -> _Written | FailedAttempt:
                answer = self._caller.attempt(_call_of(request(), ticket), deadline)
                return answer if isinstance(answer, FailedAttempt) else _decoded(decode, answer)

            timeout = self._timeout(timeout_s)
            if member is None or ticket is None or self._coalescer is None:
                repeatable = ticket is not None
                renew = (lambda _: False) if ticket is None else ticket.renew
                return self._caller.repeat(
                    alone, timeout, reads=False, repeatable=repeatable, renew=renew
                )[0]
            # An operation has results of its own kind, whichever way it goes.
            result = self._coalescer.run(member, ticket, cast("Alone", alone), timeout)
            return cast("_Written", result)


def _call_of(request: _Request, ticket: Ticket | None) -> Call:
    method, target, headers, body = request
    if ticket is not None:
        headers = {**headers, SESSION_HEADER: ticket.header}
    return Call(method, target, headers=lambda: headers, body=body, repeatable=ticket is not None)


def _decoded(decode: Callable[[Answer], _Written], answer: Answer) -> _Written:
    try:
        return decode(answer)
    except ServerError as error:
        # A success that is not ours: whatever answered may have passed the write on.
        raise UnknownOutcomeError(str(error), status=error.status) from error


def _about(operation: BatchOperation, result: BatchResult) -> BatchResult:
    """The result of one operation; an error that several of them share becomes its own."""
    if not isinstance(result, RaftkvError):
        return result
    error = result if result.key is None else copy.copy(result)
    error.key = to_bytes(operation.key)
    return error
