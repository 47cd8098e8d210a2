"""Cursors: where a scan goes on, in a form that only this cluster makes."""

import base64
import binascii
import hashlib
import hmac

from raftkv.web.api.problems import invalid

_VERSION = 2
_CHECK_BYTES = 16
_HEAD_BYTES = 1 + _CHECK_BYTES
_CHARACTERS_MAX = 1_400


class Cursors:
    """Makes and reads cursors.

    A cursor is the key behind which its scan goes on, with a check (BLAKE2 under a key, RFC 7693)
    over that key and the range. So a cursor of another scan is refused and not answered with
    another scan's keys, and nobody makes one himself.

    Args:
        key: The same on all nodes, so that each reads what another has made; at most 64 bytes.
    """

    def __init__(self, key: bytes) -> None:
        self._key = key

    def encode(self, start: bytes, end: bytes | None, after: bytes) -> str:
        """Return a cursor: the rest of the range ``start`` to ``end`` behind the key ``after``."""
        head = bytes([_VERSION]) + self._check(start, end, after)
        return base64.urlsafe_b64encode(head + after).decode().rstrip("=")

    def decode(self, cursor: bytes, start: bytes, end: bytes | None) -> bytes:
        """Return the key after which the scan of ``start`` to ``end`` goes on.

        Raises:
            HttpError: 400 for anything that :meth:`encode` has not made for this range.
        """
        bad = invalid("bad cursor: it must come from a scan of this very range")
        if len(cursor) > _CHARACTERS_MAX:
            raise bad
        try:
            padded = cursor + b"=" * (-len(cursor) % 4)
            raw = base64.b64decode(padded, altchars=b"-_", validate=True)
        except (binascii.Error, ValueError) as error:
            raise bad from error
        head, after = raw[:_HEAD_BYTES], raw[_HEAD_BYTES:]
        made = bytes([_VERSION]) + self._check(start, end, after)
        if not after or not hmac.compare_digest(head, made):
            raise bad
        if after < start or (end is not None and after >= end):
            raise bad  # without a cluster secret the key is known to who knows the cluster's name
        return after

    def _check(self, start: bytes, end: bytes | None, after: bytes) -> bytes:
        check = hashlib.blake2b(
            b"%d:" % len(start) + start, digest_size=_CHECK_BYTES, key=self._key
        )
        check.update(b"-" if end is None else b"%d:" % len(end) + end)
        check.update(after)
        return check.digest()
