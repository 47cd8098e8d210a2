"""The same operations as HTTP/1.1 requests of different stores, made as cheaply as may be."""

from base64 import b64encode
from collections.abc import Mapping, Sequence
from typing import Protocol

import msgspec

from raftkv.client.codec import MSGPACK

Pairs = Sequence[tuple[bytes, bytes]]

_POST = b"POST %b HTTP/1.1\r\nhost: localhost\r\ncontent-type: %b\r\ncontent-length: %d\r\n\r\n%b"
_JSON = b"application/json"


class Dialect(Protocol):
    """How a store wants to be asked. Keys are made of characters that URLs and JSON take as is."""

    has_batches: bool
    part_failed: bytes | None
    """What a successful answer to a batch holds if an operation of it failed; None if it cannot."""

    def put(self, key: bytes, value: bytes) -> bytes:
        """Set a key."""

    def get(self, key: bytes) -> bytes:
        """Read a key, linearizably if the store can."""

    def get_stale(self, key: bytes) -> bytes:
        """Read a key from the node that is asked, which may lag."""

    def batch(self, pairs: Pairs) -> bytes:
        """Set many distinct keys."""

    def scan(self, start: bytes, limit: int) -> bytes:
        """Read a page of keys from ``start`` on."""


class RaftkvDialect:
    """Our own HTTP API: raw bytes, and MessagePack for batches, as the Python client sends them."""

    has_batches = True
    part_failed: bytes | None = b"definite"

    def put(self, key: bytes, value: bytes) -> bytes:
        """``PUT /v1/kv/{key}``."""
        return b"PUT /v1/kv/%b HTTP/1.1\r\nhost: localhost\r\ncontent-length: %d\r\n\r\n%b" % (
            key,
            len(value),
            value,
        )

    def get(self, key: bytes) -> bytes:
        """``GET /v1/kv/{key}``."""
        return b"GET /v1/kv/%b HTTP/1.1\r\nhost: localhost\r\n\r\n" % key

    def get_stale(self, key: bytes) -> bytes:
        """``GET /v1/kv/{key}?consistency=stale``."""
        return b"GET /v1/kv/%b?consistency=stale HTTP/1.1\r\nhost: localhost\r\n\r\n" % key

    def batch(self, pairs: Pairs) -> bytes:
        """``POST /v1/batch``."""
        operations = [{"op": "put", "key": key, "value": value} for key, value in pairs]
        body = msgspec.msgpack.encode({"operations": operations})
        return _POST % (b"/v1/batch", MSGPACK.encode(), len(body), body)

    def scan(self, start: bytes, limit: int) -> bytes:
        """``GET /v1/kv?start=``."""
        return b"GET /v1/kv?start=%b&limit=%d HTTP/1.1\r\nhost: localhost\r\n\r\n" % (start, limit)


class EtcdDialect:
    """etcd's JSON gateway: base64 in JSON; batches are transactions."""

    has_batches = True
    part_failed: bytes | None = None

    def put(self, key: bytes, value: bytes) -> bytes:
        """``/v3/kv/put``."""
        body = b'{"key":"%b","value":"%b"}' % (b64encode(key), b64encode(value))
        return _POST % (b"/v3/kv/put", _JSON, len(body), body)

    def get(self, key: bytes) -> bytes:
        """``/v3/kv/range``, which is linearizable by default."""
        body = b'{"key":"%b"}' % b64encode(key)
        return _POST % (b"/v3/kv/range", _JSON, len(body), body)

    def get_stale(self, key: bytes) -> bytes:
        """``/v3/kv/range`` with ``serializable``."""
        body = b'{"key":"%b","serializable":true}' % b64encode(key)
        return _POST % (b"/v3/kv/range", _JSON, len(body), body)

    def batch(self, pairs: Pairs) -> bytes:
        """``/v3/kv/txn`` without comparisons; 128 operations at most by default."""
        puts = b",".join(
            [
                b'{"request_put":{"key":"%b","value":"%b"}}' % (b64encode(key), b64encode(value))
                for key, value in pairs
            ]
        )
        body = b'{"success":[%b]}' % puts
        return _POST % (b"/v3/kv/txn", _JSON, len(body), body)

    def scan(self, start: bytes, limit: int) -> bytes:
        """``/v3/kv/range`` to the end of all keys."""
        body = b'{"key":"%b","range_end":"AA==","limit":%d}' % (b64encode(start), limit)
        return _POST % (b"/v3/kv/range", _JSON, len(body), body)


class ExampleDialect:
    """The HTTP server of :mod:`raftkv.bench.peers.pysyncobj_http`: one key a request."""

    has_batches = False
    part_failed: bytes | None = None

    def put(self, key: bytes, value: bytes) -> bytes:
        """``POST /{key}``; its values are text."""
        text = value.hex().encode()[: len(value)]
        return _POST % (b"/" + key, b"text/plain", len(text), text)

    def get(self, key: bytes) -> bytes:
        """``GET /{key}``: whatever this node has."""
        return b"GET /%b HTTP/1.1\r\nhost: localhost\r\n\r\n" % key

    get_stale = get

    def batch(self, pairs: Pairs) -> bytes:
        """It has none."""
        raise NotImplementedError(f"the example cannot set {len(pairs)} keys at once")

    def scan(self, start: bytes, limit: int) -> bytes:
        """It has none."""
        raise NotImplementedError(f"the example cannot read {limit} keys from {start!r} on")


DIALECTS: Mapping[str, Dialect] = {
    "raftkv": RaftkvDialect(),
    "etcd": EtcdDialect(),
    "pysyncobj": ExampleDialect(),
}
