"""Everything that a client can raise.

::

    RaftkvError
    ├── DefiniteError                 nothing was applied and nothing will be
    │   ├── InvalidRequestError       the request makes no sense as it is: do not repeat it
    │   │   ├── TooLargeError         over a limit of the server
    │   │   ├── CrossShardError       a transaction over several shards: use a {tag}
    │   │   ├── KeyReusedError        another request came under the same idempotency key
    │   │   └── NotFoundError         no such shard or node (a missing *key* is not an error)
    │   ├── AccessError               no token, a wrong one, or one that may not do this
    │   ├── PreconditionFailedError   the key is not what if_revision or if_absent asked for
    │   ├── ServerError               the server failed by a bug of its own
    │   └── UnavailableError          could not be done now; may work later
    │       ├── BusyError             queues are full: send less
    │       └── DiskFullError         no space for writes; reads go on
    └── UnknownOutcomeError           the write may have been applied, or may still be

The two branches are what a program needs to know: after a :class:`DefiniteError` the store is as
it was, after an :class:`UnknownOutcomeError` only a read can tell. Reads change nothing, so a
failed read is always definite.
"""

__all__ = [
    "AccessError",
    "BusyError",
    "CrossShardError",
    "DefiniteError",
    "DiskFullError",
    "InvalidRequestError",
    "KeyReusedError",
    "NotFoundError",
    "PreconditionFailedError",
    "RaftkvError",
    "ServerError",
    "TooLargeError",
    "UnavailableError",
    "UnknownOutcomeError",
]


_KEY_SHOWN = 64


class RaftkvError(Exception):
    """Base of all. ``status`` is the HTTP status of the answer, None if there was none.

    ``key`` is the key of the operation that failed, None where it was about several or none. The
    text of the error ends with it.
    """

    key: bytes | None = None

    def __init__(self, message: str, *, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status

    def __str__(self) -> str:
        message = super().__str__()
        return message if self.key is None else f"{message} (key {_shown(self.key)})"


class DefiniteError(RaftkvError):
    """Nothing was applied and nothing will be."""


class InvalidRequestError(DefiniteError):
    """The request makes no sense as it is; repeating it gives the same answer."""


class TooLargeError(InvalidRequestError):
    """A key, value, batch or transaction is over a limit of the server."""


class CrossShardError(InvalidRequestError):
    """The keys of a transaction live on several shards; keys with the same {tag} do not."""


class KeyReusedError(InvalidRequestError):
    """Another request came under the same idempotency key."""


class NotFoundError(InvalidRequestError):
    """There is no such shard or node. A missing key is not an error but None."""


class AccessError(DefiniteError):
    """No token, a wrong one, or one whose role may not do this."""


class PreconditionFailedError(DefiniteError):
    """The key is not in the state that the write asked for.

    ``current_revision`` is what the key has now, None if it does not exist.
    """

    def __init__(
        self, message: str, *, status: int | None = None, current_revision: int | None = None
    ) -> None:
        super().__init__(message, status=status)
        self.current_revision = current_revision


class ServerError(DefiniteError):
    """The server failed by a bug of its own, or is not a raftkv server."""


class UnavailableError(DefiniteError):
    """It could not be done within the time: no node reached, no leader, shutting down."""


class BusyError(UnavailableError):
    """The cluster refuses work because its queues are full."""


class DiskFullError(UnavailableError):
    """The shard's leader has no space for writes; reads go on."""


class UnknownOutcomeError(RaftkvError):
    """The write may have been applied, or may still be; only a read can tell."""


def _shown(key: bytes) -> str:
    """A key in one line of bounded length."""
    try:
        text = key.decode()
    except UnicodeDecodeError:
        text = ""
    start = text[:_KEY_SHOWN] if text.isprintable() and text else key[:_KEY_SHOWN]
    return repr(start) if len(key) <= _KEY_SHOWN else f"{start!r}..., {len(key)} bytes"
