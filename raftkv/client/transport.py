"""One attempt at one request at one node: the only module that speaks HTTP (by urllib3).

Its one judgement is whether a request that failed can have reached the server: :class:`NotSent`
is certain that it cannot, :class:`Lost` is not.
"""

import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass

import urllib3
from urllib3.exceptions import (
    ConnectTimeoutError,
    HTTPError,
    LocationValueError,
    NewConnectionError,
    ReadTimeoutError,
    SSLError,
)

from raftkv.client.clock import boot_s

_BODY_CHUNK_BYTES = 2**18


class NotSent(Exception):  # noqa: N818 -- a fact about an attempt, always handled inside
    """No connection could be made: the request has not left this machine."""


class Lost(Exception):  # noqa: N818 -- a fact about an attempt, always handled inside
    """The answer did not come, or not whole: the request may have been carried out."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer; ``headers`` have lower-case names."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    endpoint: str = ""


class Transport:
    """Connection pools, one per endpoint; safe to use from several threads and after a fork.

    The lock guards the dictionary of pools.
    """

    def __init__(self, *, ca: str | None, connections: int, connect_timeout_s: float) -> None:
        self._ca = ca
        self._connections = connections
        self._connect_timeout_s = connect_timeout_s
        self._lock = threading.Lock()
        self._pools: dict[str, urllib3.HTTPConnectionPool] = {}
        self._pid = os.getpid()

    def _pool(self, endpoint: str) -> urllib3.HTTPConnectionPool:
        with self._lock:
            if self._pid != os.getpid():
                # A socket shared with the parent of a fork would give each the other's answers.
                self._pools = {}
                self._pid = os.getpid()
            pool = self._pools.get(endpoint)
            if pool is None:
                pool = self._pools[endpoint] = self._connect(endpoint)
            return pool

    def _connect(self, endpoint: str) -> urllib3.HTTPConnectionPool:
        tls = {"ca_certs": self._ca} if endpoint.startswith("https:") and self._ca else {}
        return urllib3.connection_from_url(
            endpoint, maxsize=self._connections, block=False, retries=False, **tls
        )

    def send(
        self,
        endpoint: str,
        method: str,
        target: str,
        *,
        headers: Mapping[str, str],
        body: bytes | None,
        timeout_s: float,
    ) -> Answer:
        """Send one request and read the whole answer within ``timeout_s``.

        Raises:
            NotSent: No connection could be made.
            Lost: Anything later went wrong.
        """
        deadline = boot_s() + timeout_s
        connect_s = min(timeout_s, self._connect_timeout_s)
        try:
            response = self._pool(endpoint).urlopen(
                method,
                target,
                headers=headers,
                body=body,
                timeout=urllib3.Timeout(connect=connect_s, total=timeout_s),
                redirect=False,
                preload_content=False,
            )
        except (NewConnectionError, ConnectTimeoutError, LocationValueError) as error:
            raise NotSent(f"{endpoint}: {_reason(error)}") from error
        except (HTTPError, OSError) as error:
            if _is_bad_certificate(error):
                raise NotSent(f"{endpoint}: {_reason(error)}") from error
            raise Lost(f"{endpoint}: {_reason(error)}") from error
        return _read(endpoint, response, deadline)

    def close(self) -> None:
        """Close all idle connections."""
        with self._lock:
            for pool in self._pools.values():
                pool.close()
            self._pools = {}


def _read(endpoint: str, response: urllib3.BaseHTTPResponse, deadline: float) -> Answer:
    """Read the body piece by piece: a socket time-out alone would let a dripping one go on."""
    pieces = []
    try:
        while piece := _read_some(response, deadline):
            pieces.append(piece)
    except (HTTPError, OSError) as error:
        response.close()
        raise Lost(f"{endpoint}: {_reason(error)}") from error
    response.release_conn()
    headers = {name.lower(): value for name, value in response.headers.items()}
    return Answer(response.status, headers, b"".join(pieces), endpoint)


def _read_some(response: urllib3.BaseHTTPResponse, deadline: float) -> bytes:
    """Wait for what comes next, not for a whole chunk of it, and never past the deadline."""
    left_s = deadline - boot_s()
    if left_s <= 0:
        raise TimeoutError("the answer came too slowly")
    # None where the server closes after its answer; the time-out of the request then goes on.
    sock = getattr(response.connection, "sock", None)
    if sock is not None:
        sock.settimeout(left_s)
    return response.read1(_BODY_CHUNK_BYTES)


def _is_bad_certificate(error: Exception) -> bool:
    """Whether TLS failed before any of the request was sent, for want of a trusted certificate."""
    return isinstance(error, SSLError) and "CERTIFICATE_VERIFY_FAILED" in str(error)


def _reason(error: Exception) -> str:
    """One line without urllib3's object addresses."""
    if isinstance(error, ConnectTimeoutError) and not isinstance(error, NewConnectionError):
        return "connecting took too long"
    if isinstance(error, ReadTimeoutError):
        return "no answer in time"
    text = str(error.__cause__ or error)
    return text.rpartition(">: ")[2].splitlines()[0] if text else type(error).__name__
