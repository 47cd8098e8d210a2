"""Whose share of the idempotency table a request's new names come out of.

An owner is a token with an address. Not the token alone: a whole service often has one, and one
client of it that goes wrong would stop the others. Not the address alone: behind a proxy or on one
machine all have the same. Who has many of either has many shares, and still leaves something: each
share is a multiple of what is free (:mod:`raftkv.core.shard.outcomes`).

Shards keep owners as numbers: an owner's number must be the same at every node and at any time.
"""

import functools
import hashlib
import ipaddress

NETWORK_BITS = 64
"""An IPv6 host may have any address of its network (RFC 4291, section 2.5.1; RFC 8981)."""


def address_of(client: object) -> str:
    """Return who a request comes from: ASGI has a host and a port, WSGI a host."""
    host = client[0] if isinstance(client, tuple | list) and client else client
    return str(host or "unknown")


@functools.lru_cache(maxsize=4096)
def owner_of(token: str, address: str) -> int:
    """Return the number of an owner, from 1 to 2^63 - 1.

    Args:
        token: the name of the token, any word without tokens.
        address: of the client, as :func:`address_of` has it.
    """
    said = f"{_network_of(address)} {token}".encode()
    digest = hashlib.blake2b(said, digest_size=8).digest()
    return int.from_bytes(digest) >> 1 or 1


def _network_of(address: str) -> str:
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if parsed.version == 4:  # noqa: PLR2004 -- as in IPv4
        return str(parsed)
    if parsed.ipv4_mapped is not None:  # what a socket for both says of an IPv4 client
        return str(parsed.ipv4_mapped)
    return str(ipaddress.ip_network((parsed, NETWORK_BITS), strict=False))
