"""Which shard an operation belongs to; one over several shards is refused."""

from raftkv.core.cluster_map import ClusterMap
from raftkv.core.operations import Command, KeyWrite, Range, Txn, TxnPart
from raftkv.core.ring import share_tag
from raftkv.rpc.messages import Failure, GetRequest

_SCATTERED_RANGE = (
    "the keys of a range in a transaction must share a {tag}: let its prefix, or its start and its "
    "end, begin with one, as {order}/; or use a scan, which reads all shards"
)


def shard_of(cluster_map: ClusterMap, item: Command | GetRequest) -> int | Failure:
    """Return the shard that all keys of ``item`` belong to, or why there is none, definitely."""
    if isinstance(item, GetRequest):
        return cluster_map.shard_of(item.key)
    operation = item.operation
    if isinstance(operation, KeyWrite):
        return cluster_map.shard_of(operation.key)
    if isinstance(operation, Txn):
        return _shard_of_txn(cluster_map, operation)
    return Failure("invalid", "not an operation for clients", definite=True)


def _shard_of_txn(cluster_map: ClusterMap, txn: Txn) -> int | Failure:
    """A transaction is one entry of one log, so all of its keys must be there."""
    keys = [compare.key for compare in txn.compare]
    parts = (*txn.then, *txn.otherwise)
    keys += [part.start if isinstance(part, Range) else part.key for part in parts]
    shards = {cluster_map.shard_of(key) for key in keys}
    if len(shards) == 1:
        if len(cluster_map.ring.shards) > 1 and not all(map(_in_one_shard, parts)):
            return Failure("cross_shard", _SCATTERED_RANGE, definite=True)
        return shards.pop()
    if not keys:
        return Failure("invalid", "a transaction needs at least one key", definite=True)
    detail = "the keys of a transaction must share a shard: give them the same {tag}"
    return Failure("cross_shard", detail, definite=True)


def _in_one_shard(part: TxnPart) -> bool:
    return not isinstance(part, Range) or share_tag(part.start, part.end)
