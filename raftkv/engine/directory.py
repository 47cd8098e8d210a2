"""The cluster map that this node goes by now: the one place that everybody asks.

A map is immutable and has an epoch; the newest that a node has seen replaces the one before. Who
keeps something that follows from a map subscribes, and is told of each change; nobody keeps a map
of his own. Two nodes that go by different epochs may take a key for different shards', so every
call between nodes carries its sender's epoch, and :meth:`Directory.mismatch` compares it.
"""

from collections.abc import Callable

from raftkv.core.cluster_map import ClusterMap
from raftkv.rpc.messages import Failure

__all__ = ["ANY_EPOCH", "Directory"]

ANY_EPOCH = 0
"""What a call says that was made without a map, as a front end's: it is routed here."""

Subscriber = Callable[[ClusterMap, ClusterMap], None]
"""Called with the map before, and the map that counts now."""


class Directory:
    """The current map of one node. Used on the event loop only.

    ``map`` and ``epoch`` are read for every request, so they are plain attributes; only
    :meth:`take` sets them.
    """

    __slots__ = ("_subscribers", "epoch", "map")

    def __init__(self, cluster_map: ClusterMap) -> None:
        self.map = cluster_map
        """The newest map that was taken."""
        self.epoch = cluster_map.epoch
        """Its epoch."""
        self._subscribers: dict[int, Subscriber] = {}

    def subscribe(self, changed: Subscriber) -> Callable[[], None]:
        """Call ``changed`` after each change, in the order of subscription; return what ends it."""
        number = max(self._subscribers, default=0) + 1
        self._subscribers[number] = changed

        def end() -> None:
            self._subscribers.pop(number, None)

        return end

    def take(self, newer: ClusterMap) -> bool:
        """Go by ``newer`` if its epoch is higher; return whether it is.

        Raises:
            ValueError: it is the map of another cluster.
        """
        before = self.map
        if newer.cluster_id != before.cluster_id:
            raise ValueError(f"a map of cluster {newer.cluster_id}, this is {before.cluster_id}")
        if newer.epoch <= before.epoch:
            return False
        self.map, self.epoch = newer, newer.epoch
        for changed in list(self._subscribers.values()):
            changed(before, newer)
        return True

    def mismatch(self, epoch: int) -> Failure | None:
        """Return the refusal of a call that was routed by a map of ``epoch``; None: it may be.

        Nothing of the call was done, so it is definite. The reply carries this node's epoch.
        """
        if epoch in (self.epoch, ANY_EPOCH):
            return None
        detail = f"the call was routed by map {epoch}, this node goes by map {self.epoch}"
        return Failure("moved", detail, definite=True)
