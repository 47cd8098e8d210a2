"""What a step of a replica leaves for its host to carry out, as values.

The name and the idea are those of etcd's raft: a step does no I/O and calls nobody back.
"""

from collections.abc import Sequence
from typing import Literal

import msgspec

from raftkv.raft.journal import LogEntry
from raftkv.raft.messages import RaftMessage

Role = Literal["follower", "candidate", "leader"]

FOLLOWER: Literal["follower"] = "follower"
CANDIDATE: Literal["candidate"] = "candidate"
LEADER: Literal["leader"] = "leader"


class RoleChange(msgspec.Struct, frozen=True):
    """The replica was ``before`` and is ``now``; ``term`` is that in which it changed."""

    before: Role
    now: Role
    term: int


class SnapshotNeeded(msgspec.Struct, frozen=True):
    """The follower ``peer`` wants entries that are only in a snapshot now."""

    peer: str


class EntriesLost(msgspec.Struct, frozen=True):
    """The follower ``peer`` no longer has entries that it had acknowledged."""

    peer: str
    first: int
    last: int


Notice = RoleChange | SnapshotNeeded | EntriesLost


class Ready(msgspec.Struct, frozen=True):
    """What is to be done after a step, in this order."""

    notices: Sequence[Notice] = ()
    """What happened, in the order in which it did."""
    messages: Sequence[tuple[str, RaftMessage]] = ()
    """(peer, message): to be sent in this order, or lost with a disconnect."""
    entries: Sequence[LogEntry] = ()
    """Committed, to be applied in this order, each once. Those that are not applied come again."""


NOTHING = Ready()
