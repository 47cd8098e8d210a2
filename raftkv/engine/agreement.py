"""Whether this node may lead: only with facts that a majority of the nodes goes by.

A node that was set up with another map than the others is refused by them
(:mod:`raftkv.engine.handshake`). It cannot disturb them then, but it could lead a shard of which,
by its own map, it holds the only replica or a majority of them, and acknowledge what the others
know nothing of. So no group of a node stands for election before a majority of the nodes in its
map, itself among them, has agreed to its facts. That is kept on disk, so that a node which starts
again while the others are down leads what it leads alone.

Any two majorities of one list of nodes have a node in common, which goes by one set of facts: of
two maps over the same nodes one at most is agreed to. One odd node therefore stops nobody else.
But a node stops that has met so many which differ that they may have agreed to something else
without it (or, before it has been agreed with, that it cannot be any more), unless more agree with
it: it may be the odd one, also by a list of nodes of its own that makes it a majority.
"""

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Protocol

from raftkv.core.agreed import digest_of
from raftkv.storage.checked_file import ChecksumError, read_checked, write_checked
from raftkv.storage.data_dir import DataDirError
from raftkv.storage.disk import Disk

NAME = "agreed"

FORMAT = 1
"""Of the file; one of another format is no agreement, and is asked for again."""

DIFFERING_MAX = 64
"""So many differing nodes are remembered by name; there are no more in any map."""


class Record(Protocol):
    """Remembers, durably, which facts a majority has agreed to."""

    def holds(self, digest: str) -> bool:
        """Return whether it agreed to the facts of that digest, and to none since."""

    def write(self, digest: str) -> None:
        """Remember; on disk when this returns. Raises if that failed."""


class AgreedFile:
    """A :class:`Record` in the data directory.

    Raises:
        DataDirError: the file is damaged.
    """

    def __init__(self, disk: Disk, directory: Path) -> None:
        self._disk = disk
        self._path = directory / NAME
        try:
            self._body = read_checked(disk, self._path)
        except ChecksumError as error:
            raise DataDirError(str(error)) from error

    def holds(self, digest: str) -> bool:
        """Compare with what the file holds."""
        return self._body == _body(digest)

    def write(self, digest: str) -> None:
        """Replace the file."""
        write_checked(self._disk, self._path, _body(digest))
        self._body = _body(digest)


def _body(digest: str) -> bytes:
    return f"{FORMAT} {digest}".encode()


class Agreement:
    """Counts who agrees and who differs.

    Args:
        nodes: all nodes of this node's map, itself among them.
        facts: what it goes by.
        could_not_write: hears of an agreement that could not be remembered.
    """

    def __init__(
        self,
        *,
        nodes: Collection[str],
        facts: Mapping[str, str],
        record: Record,
        could_not_write: Callable[[Exception], None],
    ) -> None:
        self.changed: Callable[[], None] = lambda: None
        """Called when :attr:`may_lead` or :attr:`refusal` has changed."""
        self._majority = len(nodes) // 2 + 1
        self._may_differ = len(nodes) - self._majority
        self._digest = digest_of(facts)
        self._record = record
        self._could_not_write = could_not_write
        self._agreeing: set[str] = set()
        self._differing: dict[str, str] = {}
        self._settled = self._majority == 1 or record.holds(self._digest)
        self.refusal: str | None = None
        """Why nothing is served here, None if it is: too many nodes differ."""
        self._judged: tuple[bool, str | None] = (self.may_lead, self.refusal)

    @property
    def may_lead(self) -> bool:
        """Whether the groups of this node may lead."""
        return self._settled and self.refusal is None

    @property
    def failure(self) -> str | None:
        """Why they may not; None if they may."""
        if self.refusal is not None or self._settled:
            return self.refusal
        return (
            f"{1 + len(self._agreeing)} of the nodes in its map have agreed to it, itself among "
            f"them; {self._majority} must once"
        )

    def agrees(self, peer: str) -> None:
        """Hear that ``peer`` is proven and goes by the same facts."""
        self._differing.pop(peer, None)
        self._agreeing.add(peer)
        if not self._settled and 1 + len(self._agreeing) >= self._majority:
            self._settled = True
            self._remember()
        self._judge()

    def differs(self, peer: str, reason: str) -> None:
        """Hear that ``peer`` is proven and goes by others; it may be in no map of this node."""
        self._agreeing.discard(peer)
        if peer in self._differing or len(self._differing) < DIFFERING_MAX:
            self._differing[peer] = reason
        self._judge()

    def _remember(self) -> None:
        try:
            self._record.write(self._digest)
        except Exception as error:  # noqa: BLE001 -- it holds for this life, and is asked for again
            self._could_not_write(error)

    def _judge(self) -> None:
        enough = self._majority if self._settled else self._may_differ + 1
        self.refusal = None
        if len(self._differing) >= max(enough, 1 + len(self._agreeing)):
            peer, reason = min(self._differing.items())
            self.refusal = f"{peer} {reason} (of all that it met {len(self._differing)} differ)"
        judged = (self.may_lead, self.refusal)
        if judged != self._judged:
            self._judged = judged
            self.changed()
