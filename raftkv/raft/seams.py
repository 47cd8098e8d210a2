"""The places where PySyncObj is opened from outside, in one file.

Everything here works on private names of one exact version, so that version is checked at import.
The patches leave stock instances in the same process as they were: a stock SyncObj sees the stock
clock and the stock journal (tests show hazards on it beside ours).
"""

import zlib
from collections.abc import Callable
from typing import Any

import pysyncobj.syncobj as stock
from pysyncobj.journal import Journal
from pysyncobj.node import Node
from pysyncobj.version import VERSION

from raftkv.raft.clock import Clock

PYSYNCOBJ_VERSION = "0.3.17"

if VERSION != PYSYNCOBJ_VERSION:
    message = (
        f"raftkv hardens PySyncObj {PYSYNCOBJ_VERSION} by private names, but found {VERSION}: "
        f"pip install pysyncobj=={PYSYNCOBJ_VERSION}"
    )
    raise ImportError(message)


class Turn:
    """Whose clock PySyncObj reads: its time is one module-level name for the whole process.

    A replica enters its turn around every call into PySyncObj, which is single-threaded here, so
    one variable is enough and simulated nodes may each have a clock of their own.
    """

    def __init__(self, stock_monotonic: Callable[[], float]) -> None:
        self._stock_monotonic = stock_monotonic
        self.clock: Clock | None = None

    def monotonic(self) -> float:
        """Return the time of whoever has the turn; stock time when nobody of ours has it."""
        return self._stock_monotonic() if self.clock is None else self.clock.monotonic()


TURN = Turn(stock.monotonicTime)
_stock_create_journal = stock.createJournal


def _create_journal(journal_file: Any) -> Any:
    """Let ``conf.journalFile`` carry a journal object instead of a path."""
    return (
        journal_file if isinstance(journal_file, Journal) else _stock_create_journal(journal_file)
    )


stock.monotonicTime = TURN.monotonic
stock.createJournal = _create_journal


class NullPoller:
    """PySyncObj polls sockets every tick; our groups have none."""

    def poll(self, timeout: float) -> None:
        """Do nothing."""


class PeerNode(Node):  # type: ignore[misc] # PySyncObj ships no types
    """A member of the group, by node name.

    PySyncObj iterates over sets of nodes; a hash that does not depend on the process's hash seed
    makes a simulated run repeat.
    """

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name
        self._hash = zlib.crc32(name.encode())

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PeerNode) and other.id == self.id
