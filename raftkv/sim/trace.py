"""What happened, in order: a digest always, lines on request.

Two runs with the same digest did the same things at the same times. Times are the world's.
"""

import zlib
from collections.abc import Callable

from raftkv.sim.scheduler import SECOND_US, Scheduler


class Trace:
    """Takes notes.

    Args:
        write: gets each note as a line of text, if given.
    """

    def __init__(self, scheduler: Scheduler, write: Callable[[str], None] | None = None) -> None:
        self.notes = 0
        self._scheduler = scheduler
        self._write = write
        self._digest = 0

    @property
    def digest(self) -> str:
        """The digest of all notes so far, as 8 hexadecimal digits."""
        return f"{self._digest:08x}"

    def note(self, what: str, *facts: object) -> None:
        """Something happened now."""
        now_us = self._scheduler.now_us
        line = f"{now_us} {what} {facts}"
        self._digest = zlib.crc32(line.encode(), self._digest)
        self.notes += 1
        if self._write is not None:
            shown = " ".join(map(str, facts))
            self._write(f"{now_us // SECOND_US:5d}.{now_us % SECOND_US:06d} {what:<10} {shown}")
