"""What both ends of the Unix socket between a front end and its engine agree on."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import msgspec

from raftkv.rpc.messages import Call

PROTOCOL_VERSION = 3
"""Front end and engine are one installation; another version means a half-done upgrade."""

CHANNEL_HELLO = 0
CHANNEL_CALL = 1
CHANNEL_ITEMS = 2
"""Calls with items, and what is said of them (:mod:`raftkv.rpc.items`)."""

HELLO_BYTES_MAX = 4096
"""Largest frame before the token was seen."""

PAYLOAD_BYTES_MAX = 64 * 1024 * 1024
"""Largest call or reply; a batch is the largest of them."""

IN_FLIGHT_MAX = 8192
"""Calls that one connection may have unanswered."""

_SOCKET_PATH_BYTES_MAX = 107  # sun_path of sockaddr_un, less its final NUL


class Hello(msgspec.Struct, array_like=True, frozen=True, tag=1):
    """The first frame, from the front end."""

    protocol: int
    token: Annotated[bytes, msgspec.Meta(max_length=1024)]


class Welcome(msgspec.Struct, array_like=True, frozen=True, tag=2):
    """The engine's answer; it names itself and the bounds that it keeps to."""

    protocol: int
    node: str
    in_flight_max: int
    payload_bytes_max: int


class LocalCall(Call, frozen=True):
    """A call of a front end. ``sent_s`` is when it was sent, in seconds of the loop's clock.

    Both processes read the same monotonic clock of their machine, so the engine knows how long a
    call has waited in the socket, behind many others or while it was frozen. Between nodes there
    is no such clock.
    """

    sent_s: float | None = None


@contextlib.contextmanager
def socket_address(path: Path) -> Iterator[str]:
    """Yield an address for ``path`` that fits into a socket address, whatever its length.

    The kernel takes 107 bytes; data directories are often deeper. A path through the descriptor
    of the directory names the same file.
    """
    if len(os.fsencode(path)) <= _SOCKET_PATH_BYTES_MAX:
        yield str(path)
        return
    descriptor = os.open(path.parent, os.O_PATH | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{descriptor}/{path.name}"
    finally:
        os.close(descriptor)
