"""The client: one object for a whole program, safe to share between its threads."""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Literal, Self, TypeVar

from raftkv.client import codec
from raftkv.client.batches import BatchResult, run_batch
from raftkv.client.calls import Call, Caller
from raftkv.client.endpoints import Endpoints
from raftkv.client.errors import InvalidRequestError, ServerError, UnknownOutcomeError
from raftkv.client.session import Session, SessionPool
from raftkv.client.transport import Answer, Transport
from raftkv.client.types import (
    Bytes,
    Compare,
    Consistency,
    Delete,
    DeleteResult,
    Entry,
    Get,
    Put,
    PutResult,
    TxnResult,
    to_bytes,
)
from raftkv.version import __version__

SESSION_HEADER = "Raftkv-Session"

_Result = TypeVar("_Result")


class Client:
    """Reads and writes keys of a raftkv cluster.

    Args:
        endpoints: URLs of one or more nodes. Any node answers any request; the others are asked
            when one does not answer.
        token: Bearer token, where the cluster wants one.
        ca: File with the certificate authority of the cluster's HTTPS certificates.
        timeout_s: For each call, all its attempts and pauses together.
        attempt_timeout_s: How long to wait for one node before another one is asked.
        connections: Open connections kept for each node; more are made when more threads call.
        idempotent: Give every write its place in a session, so that it can be sent again when
            an answer is lost and is still applied once. Without it a write whose answer is lost
            is not repeated and raises :class:`~raftkv.client.errors.UnknownOutcomeError`.
    """

    def __init__(
        self,
        endpoints: Sequence[str] | str,
        *,
        token: str | None = None,
        ca: str | None = None,
        timeout_s: float = 10.0,
        attempt_timeout_s: float = 2.0,
        connections: int = 16,
        idempotent: bool = True,
    ) -> None:
        self._endpoints = Endpoints([endpoints] if isinstance(endpoints, str) else endpoints)
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

    # --- single keys ----------------------------------------------------------------------------

    def get(
        self,
        key: Bytes,
        *,
        consistency: Consistency = "linearizable",
        max_age_ms: int | None = None,
        timeout_s: float | None = None,
    ) -> Entry | None:
        """Read one key; None if it does not exist.

        ``stale`` reads whatever replica is asked; ``max_age_ms`` then bounds the age.
        """
        target = codec.with_query(codec.key_target(key), codec.read_query(consistency, max_age_ms))
        answer = self._read(target, timeout_s, missing_is_answer=True)
        return codec.entry_of(key, answer) if answer.status == 200 else None  # noqa: PLR2004 -- OK

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
        headers = codec.condition_headers(if_revision=if_revision, if_absent=if_absent)
        headers["Content-Type"] = "application/octet-stream"
        target, body = codec.key_target(key), to_bytes(value)
        return self._write(("PUT", target), headers, body, codec.put_of, timeout_s)

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

        ``revision`` is that of the :class:`Entry` that was read.

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
        headers = codec.condition_headers(if_revision=if_revision, if_absent=False)
        target = codec.key_target(key)
        return self._write(("DELETE", target), headers, None, codec.delete_of, timeout_s)

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
    ) -> Iterator[Entry]:
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
    ) -> Iterator[Entry]:
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
        self, operations: Sequence[Put | Delete | Get], *, timeout_s: float | None = None
    ) -> list[BatchResult]:
        """Do many independent operations with few requests; results are in their order.

        Not a transaction: each succeeds or fails by itself, so an error is a *value* in the list
        where it belongs. Only what failed for the moment is sent again.

        Raises:
            RaftkvError: Nothing was answered, and what kind of error it is holds for all.
        """
        return run_batch(self._caller, self._batch_sessions, operations, self._timeout(timeout_s))

    def txn(
        self,
        compare: Sequence[Compare] = (),
        then: Sequence[Put | Delete | Get] = (),
        otherwise: Sequence[Put | Delete | Get] = (),
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
        return self._write(("POST", "/v1/txn"), headers, body, codec.txn_of, timeout_s)

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
        self, shard: int, to: str | None = None, *, timeout_s: float | None = None
    ) -> dict[str, Any]:
        """Hand the leadership of a shard to node ``to``; None is the preferred node."""
        call = Call(
            "POST",
            f"/v1/shards/{shard}/transfer-leader",
            headers=lambda: {"Content-Type": "application/json"},
            body=codec.transfer_body(to),
            # Asking twice for the same leader is asking once.
            repeatable=True,
        )
        return codec.document_of(self._caller.run(call, self._timeout(timeout_s)))

    # --- shared ---------------------------------------------------------------------------------

    def _timeout(self, timeout_s: float | None) -> float:
        return self._timeout_s if timeout_s is None else timeout_s

    def _read(
        self, target: str, timeout_s: float | None, *, missing_is_answer: bool = False
    ) -> Answer:
        call = Call("GET", target, reads=True, repeatable=True, missing_is_answer=missing_is_answer)
        return self._caller.run(call, self._timeout(timeout_s))

    def _write(
        self,
        request: tuple[str, str],
        headers: Mapping[str, str],
        body: bytes | None,
        decode: Callable[[Answer], _Result],
        timeout_s: float | None,
    ) -> _Result:
        with contextlib.ExitStack() as stack:
            ticket = None if self._session is None else stack.enter_context(self._session.writes())

            def attempt_headers() -> Mapping[str, str]:
                return headers if ticket is None else {**headers, SESSION_HEADER: ticket.header}

            call = Call(
                *request,
                headers=attempt_headers,
                body=body,
                repeatable=ticket is not None,
            )
            answer = self._caller.run(call, self._timeout(timeout_s))
        try:
            return decode(answer)
        except ServerError as error:
            # A success that is not ours: whatever answered may have passed the write on.
            raise UnknownOutcomeError(str(error), status=error.status) from error
