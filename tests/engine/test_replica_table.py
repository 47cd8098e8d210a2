"""The records of a node's groups: one each, found by name and, if the map says so, by shard."""

from types import SimpleNamespace
from typing import cast

import msgspec
import pytest

from raftkv.core.cluster_map import GroupId
from raftkv.core.placement import seed_map
from raftkv.engine.directory import Directory
from raftkv.engine.replica_table import ReplicaTable
from raftkv.raft.group import Group

MAP = seed_map("test", ["n1"], 2, 1)
NEXT = msgspec.structs.replace(
    MAP,
    epoch=MAP.epoch + 1,
    groups=(msgspec.structs.replace(MAP.groups[0], generation=2), MAP.groups[1]),
)
"""Shard 0 has a successor."""


def group(shard: int, generation: int = 1) -> Group:
    """Return a group that has a name only."""
    return cast("Group", SimpleNamespace(id=GroupId(shard, generation)))


def test_record_comes_and_goes_with_its_group() -> None:
    """Nothing of it is left: one that comes back under its name begins anew."""
    table = ReplicaTable(Directory(MAP))
    record = table.add(group(0), began_us=5)
    record.load.reads = 7
    assert (table.by_shard[0], len(table), list(table)) == (record, 1, [record])
    assert table.remove(GroupId(0, 1)) is record
    assert (table.by_id, table.by_shard) == ({}, {})
    assert table.add(group(0), began_us=6).load.reads == 0


def test_group_has_one_record() -> None:
    """A second one of the same name is a mistake of who starts it."""
    table = ReplicaTable(Directory(MAP))
    table.add(group(0), began_us=0)
    with pytest.raises(ValueError, match=r"0\.1 is here already"):
        table.add(group(0), began_us=0)


def test_shard_is_found_at_the_group_that_the_map_names() -> None:
    """Not at its successor, which is here before the map says so, and not at its predecessor."""
    directory = Directory(MAP)
    table = ReplicaTable(directory)
    by_shard = table.by_shard  # the router holds on to it
    old, other = table.add(group(0), 0), table.add(group(1), 0)
    new = table.add(group(0, generation=2), 0)
    assert by_shard == {0: old, 1: other}
    directory.take(NEXT)
    assert by_shard == {0: new, 1: other}
    table.remove(GroupId(0, 1))
    assert by_shard == {0: new, 1: other}
