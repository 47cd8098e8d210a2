"""How much of the log may be in flight to a peer, of all groups of this node together.

Each group has a window of its own (:mod:`raftkv.raft.replication`). A peer that was away lacks
entries of all of them, and all those windows together would be more than a link takes. So they
share one per peer: groups wait for room in it and then go on by turns, a message each. A group
that has nothing in flight may always send a little, so that those that merely go on need not wait
for those that catch up.
"""

from collections.abc import Callable

PEER_WINDOW_BYTES = 16 * 1024 * 1024
"""Bytes of entries in flight to one peer before its groups wait for each other's answers."""

SHARE_BYTES = 32 * 1024
"""What a group with nothing in flight may send whatever the others have: 32 MiB of 1,024 groups."""

Turn = Callable[[], None]
"""Lets a group send one message to the peer, and wait again if it has more."""


class PeerWindow:
    """The window to one peer.

    ``opened`` is called when there is room again for those that wait; :meth:`give_turns` should
    follow, at the end of the step and not inside it.
    """

    def __init__(self, opened: Callable[[], None], bytes_max: int = PEER_WINDOW_BYTES) -> None:
        self._opened = opened
        self._waiting: dict[Turn, None] = {}
        self.free_bytes = bytes_max
        """Negative where a message, or groups' shares, went beyond it."""

    @property
    def is_open(self) -> bool:
        """Whether a group may send now, as nobody waits and there is room."""
        return self.free_bytes > 0 and not self._waiting

    def take(self, size_bytes: int) -> None:
        """Count what was sent."""
        self.free_bytes -= size_bytes

    def release(self, size_bytes: int) -> None:
        """Count what was answered, or lost with its link or leadership."""
        self.free_bytes += size_bytes
        if self._waiting and self.free_bytes > 0:
            self._opened()

    def wait(self, turn: Turn) -> None:
        """Have a turn once there is room, behind those that wait already."""
        self._waiting[turn] = None

    def give_turns(self) -> None:
        """Let those that wait go on, first come first served, as long as there is room."""
        while self._waiting and self.free_bytes > 0:
            turn = next(iter(self._waiting))
            del self._waiting[turn]
            turn()
