"""Digests of the state at recent indexes, to be compared with the leader's.

Replicas that applied the same entries must agree; a difference is an alarm, not a log line.
"""

DIGESTS_KEPT = 256


class DigestHistory:
    """What this replica's state looked like after each of its latest entries."""

    def __init__(self) -> None:
        self._digests: dict[int, int] = {}
        self._asked: tuple[int, int, str] | None = None  # (index, the leader's digest, leader)
        self.mismatch: str | None = None
        """Where and from whom the state was first seen to differ."""
        self.agreed_index: int | None = None
        """The highest index at which it was seen to be the leader's."""

    def note(self, index: int, digest: int) -> bool:
        """Remember a digest; true if it shows a difference with what the leader said."""
        self._digests[index] = digest
        self._digests.pop(index - DIGESTS_KEPT, None)
        if self._asked is None or self._asked[0] > index:
            return False
        asked, self._asked = self._asked, None
        return self.compare(*asked, applied_index=index)

    def restart(self, index: int, digest: int) -> None:
        """Begin anew at a state that was installed whole."""
        self._digests = {index: digest}
        self._asked = None

    def at(self, index: int) -> int | None:
        """Return the digest at ``index``, if it is remembered."""
        return self._digests.get(index)

    def compare(self, index: int, digest: int, peer: str, *, applied_index: int) -> bool:
        """Compare with a peer's digest, now or once ``index`` is applied; true if they differ."""
        if index > applied_index:
            self._asked = (index, digest, peer)
            return False
        own = self._digests.get(index)
        if own is None:
            return False
        if own == digest:
            self.agreed_index = index
            return False
        self.mismatch = f"at entry {index} the state differs from that of {peer}"
        return True
