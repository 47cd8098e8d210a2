"""Answers that clients have not read yet: bounded in time, and for a worker in bytes.

The server takes an answer whole, whatever its size, if it is given whole. So a large one is given
in pieces, each when the one before has gone to the client or into the buffers below: what a client
does not read waits here, where it is counted, and where it has an end.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable

from raftkv.web.serve.intake import Message

Send = Callable[[Message], Awaitable[None]]

PIECE_BYTES = 64 * 1024
"""An answer up to this size is given whole, and not counted."""

STUCK_S = 1.0
"""Over the bound, a client that has read nothing for this long makes room."""

_logger = logging.getLogger(__name__)


class ClientTooSlowError(Exception):
    """The client does not read its answer; the connection is given up."""


class _Waiting:
    """An answer under way. ``since``: when its client took the last piece, in the loop's time."""

    __slots__ = ("held", "since", "timeout")

    def __init__(self, size: int, since: float) -> None:
        self.held = size
        self.since = since
        self.timeout: asyncio.Timeout | None = None


class UnreadAnswers:
    """What one worker holds for clients that read slowly.

    Args:
        wait_s: for so long a client may take nothing before its connection is given up.
        bytes_max: so much may be held; beyond, clients that are stuck are given up earlier, and
            where that is not enough requests that read are to be refused.
    """

    def __init__(self, *, wait_s: float, bytes_max: int) -> None:
        self._wait_s = wait_s
        self._bytes_max = bytes_max
        self._answers: dict[_Waiting, None] = {}  # who took a piece longest ago is first
        self.bytes_held = 0
        self.given_up = 0
        """How many clients were too slow so far."""

    @property
    def is_full(self) -> bool:
        """Whether as much is held as may be, also after all who are stuck were given up."""
        if self.bytes_held < self._bytes_max:
            return False  # nearly always
        now = asyncio.get_running_loop().time()
        for answer in list(self._answers):
            if self.bytes_held < self._bytes_max or now - answer.since < STUCK_S:
                break
            if answer.timeout is not None:
                answer.timeout.reschedule(now)
                self._release(answer)
        return self.bytes_held >= self._bytes_max

    async def send(self, send: Send, body: bytes, *, more_body: bool = False) -> None:
        """Give ``body`` to the server as fast as the client takes it.

        Raises:
            ClientTooSlowError: it takes nothing any more.
        """
        answer = _Waiting(len(body), asyncio.get_running_loop().time())
        self._answers[answer] = None
        self.bytes_held += answer.held
        try:
            for at in range(0, len(body) or 1, PIECE_BYTES):
                end = at + PIECE_BYTES
                more = more_body or end < len(body)
                piece = {"type": "http.response.body", "body": body[at:end], "more_body": more}
                await self._send_piece(answer, send, piece)
        finally:
            self._release(answer)

    async def _send_piece(self, answer: _Waiting, send: Send, piece: Message) -> None:
        try:
            async with asyncio.timeout(self._wait_s) as answer.timeout:
                await send(piece)
        except TimeoutError:
            self.given_up += 1
            _logger.warning("a client that did not read its answer was given up")
            raise ClientTooSlowError from None
        answer.since = asyncio.get_running_loop().time()
        if answer in self._answers:  # it was not given up meanwhile
            del self._answers[answer]
            self._answers[answer] = None

    def _release(self, answer: _Waiting) -> None:
        self._answers.pop(answer, None)
        self.bytes_held -= answer.held
        answer.held = 0
