"""The two values that the pure functions work on: a parsed request and a finished response.

Neither knows which carrier (WSGI or ASGI) it came through or goes out by.
"""

from collections.abc import Mapping, Sequence

import msgspec

from raftkv.web.api.owners import address_of, owner_of

Header = tuple[bytes, bytes]


class HttpRequest(msgspec.Struct, gc=False):
    """A request as both carriers see it.

    Header names are lower case; a header that came more than once is joined with commas, as
    RFC 9110 section 5.2 says. ``key`` is the percent-decoded key of a single-key route. ``token``
    is the name of the token that came, ``client`` who sent it, as the carrier says.
    """

    method: str
    query: bytes
    headers: Mapping[bytes, bytes]
    key: bytes = b""
    body: bytes = b""
    token: str = ""
    client: object = None

    @property
    def owner(self) -> int:
        """Out of whose share of the idempotency table its new names come."""
        return owner_of(self.token, address_of(self.client))


class HttpResponse(msgspec.Struct, gc=False):
    """A complete response. ``body`` is not sent for HEAD, though its length is."""

    status: int
    headers: list[Header]
    body: bytes = b""


def join_headers(pairs: Sequence[Header]) -> dict[bytes, bytes]:
    """Make a mapping of header fields; the common case without repeats stays in C."""
    joined = dict(pairs)
    if len(joined) == len(pairs):
        return joined
    joined.clear()
    for name, value in pairs:
        joined[name] = joined[name] + b", " + value if name in joined else value
    return joined
