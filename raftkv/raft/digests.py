"""Digests of the state at recent indexes, to be compared with the leader's.

Replicas that applied the same entries must agree; a difference is an alarm, not a log line.
"""

from raftkv.core.cluster_map import GroupId
from raftkv.raft import messages as wire
from raftkv.raft.host import Event, Host
from raftkv.raft.replica import Replica

DIGESTS_KEPT = 256


class StateDigests:
    """What one replica's state looked like after each of its latest entries.

    A leader announces its own, a follower compares; who sees a difference tells its node. What was
    announced stays true when the leader, its link or its life ends: an applied entry is committed.
    """

    def __init__(self, group: GroupId, *, replica: Replica, host: Host) -> None:
        self.mismatch: str | None = None
        """Where and from whom the state was first seen to differ."""
        self.agreed_index: int | None = None
        """The highest index at which it was seen to be the leader's."""
        self._group = group
        self._replica = replica
        self._host = host
        self._digests: dict[int, int] = {}
        self._asked: tuple[int, int, str] | None = None  # (index, the leader's digest, leader)

    def note(self, index: int, digest: int) -> None:
        """Remember a digest; compare it if the leader has already told its own."""
        self._digests[index] = digest
        self._digests.pop(index - DIGESTS_KEPT, None)
        if self._asked is not None and self._asked[0] <= index:
            (asked, theirs, peer), self._asked = self._asked, None
            self._compare(asked, theirs, peer)

    def restart(self, index: int, digest: int) -> None:
        """Begin anew at a state that was installed whole."""
        self._digests = {index: digest}
        self._asked = None

    def announce(self) -> None:
        """Leader only: tell the others what the state is now."""
        index = self._replica.applied_index
        own = self._digests.get(index)
        if own is None:
            return  # nothing was applied since the start
        check = wire.DigestCheck(index, own.to_bytes(16, "big"))
        for peer in self._replica.peers:
            self._host.send(self._group, peer, check)

    def on_check(self, peer: str, message: wire.DigestCheck) -> None:
        """Compare with what the leader announced, now or once its index is applied."""
        digest = int.from_bytes(message.digest, "big")
        if message.index > self._replica.applied_index:
            self._asked = (message.index, digest, peer)
        else:
            self._compare(message.index, digest, peer)

    def _compare(self, index: int, digest: int, peer: str) -> None:
        own = self._digests.get(index)
        if own is None:
            return  # forgotten, or from before this node was started
        if own == digest:
            self.agreed_index = index
            return
        self.mismatch = f"at entry {index} the state differs from that of {peer}"
        self._host.event(Event("digest_mismatch", self._group, self._replica.term, self.mismatch))
