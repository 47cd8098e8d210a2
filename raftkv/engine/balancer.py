"""Keeps leaders where they belong: on the preferred nodes, and on nodes that can write.

Leaders move when nodes fail; without this they would stay wherever they went, and one node would
end up leading everything. Each node looks only at the groups that it leads itself.
"""

import logging
from collections.abc import Callable

import msgspec

from raftkv.core.cluster_map import ClusterMap, GroupId
from raftkv.raft.clock import Clock
from raftkv.raft.group import Group
from raftkv.raft.proposals import Rejection

SETTLED_S = 3.0
"""A leadership is left alone for this long after it changed."""

_logger = logging.getLogger(__name__)


class NodeState(msgspec.Struct, array_like=True, frozen=True):
    """What nodes tell each other every second, so that nobody hands work to who cannot do it."""

    has_space: bool
    stopping: bool

    @property
    def may_lead(self) -> bool:
        """Whether it makes sense to hand a leadership to that node."""
        return self.has_space and not self.stopping


class Balancer:
    """Moves leaderships that this node holds, one at a time.

    Args:
        own_state: what this node tells the others about itself.
    """

    def __init__(
        self,
        *,
        node: str,
        cluster_map: ClusterMap,
        groups: dict[GroupId, Group],
        clock: Clock,
        own_state: Callable[[], NodeState],
    ) -> None:
        self.peers: dict[str, NodeState] = {}
        """Latest word of each connected node; the engine drops it with the link."""
        self._node = node
        self._map = cluster_map
        self._groups = groups
        self._clock = clock
        self._own_state = own_state

    def check(self) -> None:
        """Start one transfer if there is reason for one."""
        unable = not self._own_state().may_lead
        settled_before = self._clock.monotonic() - SETTLED_S
        for group in self._groups.values():
            if not group.is_leader:
                continue
            if unable:
                target = self.ablest(group)
            elif group.leader_since < settled_before:
                target = self._preferred(group)
            else:
                continue
            if target is not None:
                group.transfer.begin(target, lambda outcome, group=group: _log(group, outcome))  # type: ignore[misc]
                return

    def _preferred(self, group: Group) -> str | None:
        preferred = self._map.placement(group.id.shard).preferred_leader
        if preferred == self._node or not self._may_take(group, preferred):
            return None
        return preferred

    def _may_take(self, group: Group, node: str) -> bool:
        state = self.peers.get(node)
        caught_up = group.match_index(node) >= group.commit_index > 0
        return state is not None and state.may_lead and caught_up

    def ablest(self, group: Group) -> str | None:
        """Return the replica that is furthest and may lead, None if no other may."""
        able = [n for n in group.config.members if n != self._node and self._may_take(group, n)]
        return max(able, key=group.match_index, default=None)


def _log(group: Group, outcome: Rejection | None) -> None:
    if outcome is not None:
        _logger.info("group %s: leadership was not handed over: %s", group.id, outcome.detail)
