"""etcd through its JSON gateway (``/v3/kv/...``), with the interface and errors of our own client.

Keys and values are base64 in JSON. Nothing is ever sent twice: etcd remembers no outcomes.
"""

import base64
import json
import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import urllib3

from raftkv.client import (
    Compare,
    Delete,
    DeleteResult,
    Get,
    KeyValue,
    PreconditionFailedError,
    Put,
    PutResult,
    TxnResult,
    UnavailableError,
    UnknownOutcomeError,
)
from raftkv.client.types import Bytes, OperationResult, to_bytes

_TARGETS = {"value": "VALUE", "create": "CREATE", "mod": "MOD", "version": "VERSION"}
_OPERANDS = {"create": "create_revision", "mod": "mod_revision", "version": "version"}
_OPERATORS = {"=": "EQUAL", "!=": "NOT_EQUAL", "<": "LESS", ">": "GREATER"}
_OK = 200


class EtcdClient:
    """A client of one or more etcd members; used by one thread at a time."""

    def __init__(
        self, endpoints: Sequence[str], *, timeout_s: float = 3.0, connect_timeout_s: float = 1.0
    ) -> None:
        self._endpoints = list(endpoints)
        self._place = random.randrange(len(self._endpoints))  # noqa: S311 -- spreads load only
        timeout = urllib3.Timeout(connect=connect_timeout_s, read=timeout_s)
        self._http = urllib3.PoolManager(retries=False, timeout=timeout, maxsize=1)

    def close(self) -> None:
        """Close the connections."""
        self._http.clear()

    # --- operations -------------------------------------------------------------------------

    def get(self, key: Bytes) -> KeyValue | None:
        """Read one key; None if it does not exist."""
        answer = self._read("/v3/kv/range", {"key": _encoded(key)})
        entries = _entries(answer)
        return entries[0] if entries else None

    def scan(self, prefix: Bytes | None = None) -> Iterator[KeyValue]:
        """All keys with a prefix, in one moment."""
        start = to_bytes(prefix or b"\0")
        end = _after(start) if prefix else b"\0"
        request = {"key": _encoded(start), "range_end": _encoded(end)}
        yield from _entries(self._read("/v3/kv/range", request))

    def put(
        self,
        key: Bytes,
        value: Bytes,
        *,
        if_revision: int | None = None,
        if_absent: bool = False,
    ) -> PutResult:
        """Set a key, under a condition if one is given."""
        compare = _condition(key, if_revision=if_revision, if_absent=if_absent)
        result = self._conditional(compare, Put(key, value), key)
        if not isinstance(result.results[0], PutResult) or result.revision is None:
            raise UnknownOutcomeError("etcd answered a put with something else")
        return PutResult(result.revision, result.results[0].version)

    def delete(self, key: Bytes, *, if_revision: int | None = None) -> DeleteResult:
        """Remove a key, under a condition if one is given."""
        compare = _condition(key, if_revision=if_revision, if_absent=False)
        result = self._conditional(compare, Delete(key), key)
        deleted = result.results[0]
        if not isinstance(deleted, DeleteResult):
            raise UnknownOutcomeError("etcd answered a delete with something else")
        return DeleteResult(deleted.deleted, result.revision if deleted.deleted else None)

    def txn(
        self,
        compare: Sequence[Compare] = (),
        then: Sequence[Put | Delete | Get] = (),
        otherwise: Sequence[Put | Delete | Get] = (),
    ) -> TxnResult:
        """If every comparison holds do ``then``, else ``otherwise``, at once or not at all."""
        request = {
            "compare": [_compare(one) for one in compare],
            "success": [_request(one) for one in then],
            "failure": [_request(one) for one in otherwise],
        }
        answer = self._write("/v3/kv/txn", request)
        succeeded = bool(answer.get("succeeded", False))
        done = then if succeeded else otherwise
        members = answer.get("responses", [])
        results = tuple(_result(one, got) for one, got in zip(done, members, strict=True))
        return TxnResult(succeeded, int(answer["header"]["revision"]), results)

    def _conditional(
        self, compare: Sequence[Compare], operation: Put | Delete, key: Bytes
    ) -> TxnResult:
        result = self.txn(compare, [operation], [Get(key)])
        if not result.succeeded:
            found = result.results[0]
            revision = found.revision if isinstance(found, KeyValue) else None
            raise PreconditionFailedError(
                "the key is not as it was expected", current_revision=revision
            )
        return result

    # --- HTTP -------------------------------------------------------------------------------

    def status(self) -> dict[str, Any]:
        """What the member that is asked says of itself."""
        return self._read("/v3/maintenance/status", {})

    def _read(self, path: str, request: Mapping[str, Any]) -> dict[str, Any]:
        try:
            return self._write(path, request)
        except UnknownOutcomeError as error:
            raise UnavailableError(str(error)) from error

    def _write(self, path: str, request: Mapping[str, Any]) -> dict[str, Any]:
        endpoint = self._endpoints[self._place]
        try:
            answer = self._http.request("POST", endpoint + path, body=json.dumps(request).encode())
        except (
            urllib3.exceptions.NewConnectionError,
            urllib3.exceptions.ConnectTimeoutError,
        ) as error:
            self._move_on()
            raise UnavailableError(f"{endpoint}: no connection") from error
        except urllib3.exceptions.HTTPError as error:
            self._move_on()
            raise UnknownOutcomeError(f"{endpoint}: {type(error).__name__}") from error
        if answer.status != _OK:
            self._move_on()
            raise UnknownOutcomeError(f"{endpoint}: {answer.data[:200]!r}", status=answer.status)
        return dict(answer.json())

    def _move_on(self) -> None:
        self._place = (self._place + 1) % len(self._endpoints)


def _encoded(data: Bytes) -> str:
    return base64.b64encode(to_bytes(data)).decode()


def _after(prefix: bytes) -> bytes:
    """The first key behind all that have this prefix; a zero byte means the end of all."""
    head = prefix.rstrip(b"\xff")
    return head[:-1] + bytes([head[-1] + 1]) if head else b"\0"


def _condition(key: Bytes, *, if_revision: int | None, if_absent: bool) -> list[Compare]:
    if if_absent:
        return [Compare(key, "create", "=", 0)]
    return [] if if_revision is None else [Compare(key, "mod", "=", if_revision)]


def _compare(one: Compare) -> dict[str, Any]:
    operand = (
        {"value": _encoded(str(one.operand) if isinstance(one.operand, int) else one.operand)}
        if one.target == "value"
        else {_OPERANDS[one.target]: str(one.operand)}
    )
    return {
        "key": _encoded(one.key),
        "target": _TARGETS[one.target],
        "result": _OPERATORS[one.operator],
        **operand,
    }


def _request(operation: Put | Delete | Get) -> dict[str, Any]:
    key = {"key": _encoded(operation.key)}
    if isinstance(operation, Put):
        value = {"value": _encoded(operation.value), "prev_kv": True}
        return {"request_put": {**key, **value}}
    return {"request_delete_range" if isinstance(operation, Delete) else "request_range": key}


def _result(operation: Put | Delete | Get, answer: Mapping[str, Any]) -> OperationResult:
    if isinstance(operation, Put):
        # The revision is that of the whole transaction; the version follows from what was there.
        before = answer["response_put"].get("prev_kv", {})
        return PutResult(0, int(before.get("version", 0)) + 1)
    if isinstance(operation, Delete):
        deleted = int(answer["response_delete_range"].get("deleted", 0))
        return DeleteResult(deleted > 0, None)
    entries = _entries(answer["response_range"])
    return entries[0] if entries else None


def _entries(answer: Mapping[str, Any]) -> list[KeyValue]:
    return [
        KeyValue(
            key=base64.b64decode(row["key"]),
            value=base64.b64decode(row.get("value", "")),
            revision=int(row["mod_revision"]),
            version=int(row["version"]),
            create_revision=int(row["create_revision"]),
        )
        for row in answer.get("kvs", [])
    ]
