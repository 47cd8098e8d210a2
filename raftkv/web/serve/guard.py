"""Who a request may be addressed to, and which web pages may send one; both carriers ask here.

A browser sends what any page makes it send, from the developer's own machine. Without tokens two
things keep a stranger's page out. A name that the stranger controls may be made to resolve to this
node (DNS rebinding), but the browser still says that name in ``Host``: only names that are this
node's are answered. And a page of another site says so in ``Origin`` and ``Sec-Fetch-Site``: what
changes something is refused.

Heads are bounded here too, before anything in them is parsed.
"""

import ipaddress
import re
from collections.abc import Mapping
from urllib.parse import urlsplit

from raftkv.rpc.web_config import WebConfig
from raftkv.web.api.exchange import Header
from raftkv.web.api.problems import HttpError

HEAD_BYTES_MAX = 16 * 1024
"""Names and values of all header fields of a request together."""

_SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS", "TRACE"})  # RFC 9110, section 9.2.1
_SHOWN_CHARACTERS = 100
_KNOWN_MAX = 256

_authority = re.compile(rb"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::[0-9]{1,5})?").fullmatch


def always_headers(config: WebConfig) -> tuple[Header, ...]:
    """Return what every response says to browsers.

    A stored value is anybody's bytes: no browser may guess that it is a page and run it. Over TLS
    a browser is told to come back by TLS only (HSTS, RFC 6797), for a year.
    """
    headers: tuple[Header, ...] = ((b"x-content-type-options", b"nosniff"),)
    if config.tls_cert is not None:
        headers += ((b"strict-transport-security", b"max-age=31536000"),)
    return headers


class RequestGuard:
    """Refuses requests that are not meant for this node or come from another site's page.

    Args:
        config: its ``hosts`` are the names that are answered beside IP addresses and
            ``localhost``; with tokens any name is, as a page of a stranger knows none.
    """

    def __init__(self, config: WebConfig) -> None:
        self._any_host = bool(config.tokens)
        names = {host.lower() for host in config.hosts}
        self._names = frozenset(name for name in names if not name.startswith("."))
        self._domains = tuple(name for name in names if name.startswith("."))
        self._known: set[bytes] = set()  # values of Host that were found good

    def check(self, method: str, headers: Mapping[bytes, bytes]) -> None:
        """Return if the request may go on; ``headers`` as :class:`HttpRequest` has them.

        Raises:
            HttpError: 431 a head over its bound, 400 no ``Host`` or several, 421 a host that is
                none of this node's, 403 a change that another site's page asks for.
        """
        if len(b"".join([*headers, *headers.values()])) > HEAD_BYTES_MAX:  # the quickest way
            raise HttpError(
                "head_too_large",
                f"the header fields are larger than {HEAD_BYTES_MAX} bytes: send fewer cookies",
                headers=((b"connection", b"close"),),
            )
        host = headers.get(b"host")
        if host not in self._known:
            self._check_host(host)
        if method not in _SAFE_METHODS and (b"origin" in headers or b"sec-fetch-site" in headers):
            _check_site(host, headers)

    def _check_host(self, host: bytes | None) -> None:
        # Two fields have been joined with a comma (RFC 9110, 5.2), which no authority has.
        match = None if host is None else _authority(host)
        if host is None or match is None:
            raise HttpError("invalid", "a request has one Host header field (RFC 9112, 3.2)")
        name = match[1].decode().lower().removesuffix(".")
        if not (self._any_host or self._is_ours(name)):
            raise HttpError(
                "misdirected",
                f"{name[:_SHOWN_CHARACTERS]!r} is no name of this node: add it to "
                "http.allowed_hosts, or set [[security.tokens]]",
            )
        if len(self._known) < _KNOWN_MAX:
            self._known.add(host)

    def _is_ours(self, name: str) -> bool:
        if name == "localhost" or name in self._names or name.endswith(self._domains):
            return True
        try:
            ipaddress.ip_address(name.strip("[]"))
        except ValueError:
            return False
        return True


def _check_site(host: bytes | None, headers: Mapping[bytes, bytes]) -> None:
    origin = headers.get(b"origin")
    if origin is not None:
        try:
            netloc = urlsplit(origin.decode("latin-1")).netloc.lower().encode("latin-1")
        except ValueError:
            netloc = b""
        if host is None or netloc != host.lower():
            shown = origin[:_SHOWN_CHARACTERS].decode("latin-1")
            raise _foreign(f"a page of {shown!r}")
    if headers.get(b"sec-fetch-site", b"same-origin") not in {b"same-origin", b"none"}:
        raise _foreign("a page of another site")


def _foreign(who: str) -> HttpError:
    return HttpError("forbidden", f"{who} may not change anything here; nothing was done")
