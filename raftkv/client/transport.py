"""One attempt at one request at one node: the only module that speaks HTTP (by urllib3).

Its one judgement is whether a request that failed can have reached the server: :class:`NotSent`
is certain that it cannot, :class:`Lost` is not.
"""

import os
import socket
import threading
import traceback
from collections.abc import Mapping

import urllib3
from urllib3.exceptions import (
    ConnectTimeoutError,
    HTTPError,
    LocationValueError,
    NameResolutionError,
    NewConnectionError,
    ProtocolError,
    ReadTimeoutError,
)

from raftkv.client.answers import Answer
from raftkv.client.attempts import ConnectionRefused, Lost, NotSent, RefusedForGood
from raftkv.client.clock import boot_s

_BODY_CHUNK_BYTES = 2**18


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
            NotSent: No connection could be made; a subclass says how certain that is.
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
        except (HTTPError, OSError) as error:
            raise _kind_of(error)(f"{endpoint}: {_reason(error)}") from error
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


_NO_SUCH_NAME = (socket.EAI_NONAME, socket.EAI_NODATA)
_TLS_ALERT = r"BadStatusLine('\x15\x03"
"""Whoever answers HTTP with this waited for TLS, and has understood none of the request."""
_TLS_FAILS_AGAIN = (
    "CERTIFICATE_VERIFY_FAILED",
    # How versions of OpenSSL call an answer that is no TLS.
    *("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "HTTP_REQUEST"),
)


def _kind_of(error: Exception) -> type[NotSent | Lost]:
    """What an error before the answer says of the request."""
    kind: type[NotSent | Lost] = Lost
    match error:
        case LocationValueError():
            kind = RefusedForGood
        case NameResolutionError(__cause__=socket.gaierror(errno=code)) if code in _NO_SUCH_NAME:
            kind = RefusedForGood
        case NewConnectionError():
            kind = ConnectionRefused
        case ConnectTimeoutError():
            kind = NotSent
        case ProtocolError() if _TLS_ALERT in str(error):
            kind = RefusedForGood
        case _ if _in_handshake(error):
            again = any(sign in str(error) for sign in _TLS_FAILS_AGAIN)
            kind = RefusedForGood if again else NotSent
    return kind


def _in_handshake(error: Exception) -> bool:
    """Whether it was met in TLS's handshake, after which the request is sent.

    What is met on a connection that stood can have the same class and text.
    """
    inner = next((one for one in error.args if isinstance(one, Exception)), error)
    frames = traceback.walk_tb(inner.__traceback__)
    return any(frame.f_code.co_name == "do_handshake" for frame, _ in frames)


def _reason(error: Exception) -> str:
    """One line without urllib3's object addresses."""
    if isinstance(error, ConnectTimeoutError) and not isinstance(error, NewConnectionError):
        return "connecting took too long"
    if isinstance(error, ReadTimeoutError):
        return "no answer in time"
    text = str(error.__cause__ or error)
    return text.rpartition(">: ")[2].splitlines()[0] if text else type(error).__name__
