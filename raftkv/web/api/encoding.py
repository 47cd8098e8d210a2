"""How arbitrary bytes travel in paths, queries and JSON documents.

One rule holds for every JSON document, in both directions: bytes called ``x`` are either the
string ``x`` (they are valid UTF-8) or the base64 string ``x_base64`` (any bytes), never both.
"""

import base64

from raftkv.core.operations import KEY_BYTES_MAX
from raftkv.web.api.problems import HttpError, invalid

_HEX_PAIRS = {
    f"{high}{low}".encode(): bytes([int(high + low, 16)])
    for high in "0123456789abcdefABCDEF"
    for low in "0123456789abcdefABCDEF"
}


def percent_decode(raw: bytes) -> bytes:
    """Decode ``%XX``; every other byte stands for itself.

    Raises:
        HttpError: A percent sign is not followed by two hexadecimal digits.
    """
    if b"%" not in raw:
        return raw
    head, *parts = raw.split(b"%")
    decoded = [head]
    for part in parts:
        byte = _HEX_PAIRS.get(part[:2])
        if byte is None:
            raise invalid("a percent sign must be followed by two hexadecimal digits")
        decoded.append(byte)
        decoded.append(part[2:])
    return b"".join(decoded)


def check_key(key: bytes) -> bytes:
    """Return ``key`` if its length is allowed."""
    if not key:
        raise invalid("a key has at least one byte")
    if len(key) > KEY_BYTES_MAX:
        raise HttpError("too_large", f"a key has at most {KEY_BYTES_MAX} bytes")
    return key


def parse_query(query: bytes, allowed: frozenset[bytes]) -> dict[bytes, bytes]:
    """Split and decode a query; unknown and repeated parameters are refused, not ignored.

    A plus sign is a space, as every form encoder writes it; a plus is ``%2B``.
    """
    if not query:
        return {}
    parameters: dict[bytes, bytes] = {}
    for pair in query.split(b"&"):
        name, separator, value = pair.partition(b"=")
        if name not in allowed:
            raise invalid(f"unknown query parameter {name.decode(errors='replace')!r}")
        if name in parameters:
            raise invalid(f"query parameter {name.decode()!r} came twice")
        if not separator:
            raise invalid(f"query parameter {name.decode()!r} has no value")
        parameters[name] = percent_decode(value.replace(b"+", b" "))
    return parameters


def text_or_base64(name: str, data: bytes) -> tuple[str, str]:
    """Return the JSON member for ``data``: its name and its value."""
    try:
        return name, data.decode()
    except UnicodeDecodeError:
        return name + "_base64", base64.b64encode(data).decode()


def prefix_end(prefix: bytes) -> bytes | None:
    """Return the smallest key after all keys with ``prefix``; None if there is none."""
    stem = prefix.rstrip(b"\xff")
    return stem[:-1] + bytes([stem[-1] + 1]) if stem else None
