"""The stored map is what counts; a configuration that contradicts it is refused."""

from pathlib import Path

import pytest

from raftkv.engine.config import ClusterOptions
from raftkv.engine.map_file import load_map
from raftkv.sim.disk import SimDisk
from raftkv.storage.data_dir import DataDirError

DIRECTORY = Path("/d")


@pytest.fixture
def disk() -> SimDisk:
    """A disk with an empty directory."""
    disk = SimDisk()
    disk.make_directory(DIRECTORY)
    disk.fsync_dir(Path("/"))
    return disk


def options(nodes: int = 3, shards: int = 4, replicas: int = 3) -> ClusterOptions:
    """Make a cluster's options."""
    addresses = {f"n{i}": f"127.0.0.1:{7000 + i}" for i in range(nodes)}
    return ClusterOptions(id="c", nodes=addresses, shards=shards, replicas=replicas)


def test_first_start_seeds_the_map_durably(disk: SimDisk) -> None:
    """What the first start made is there after a power cut, bit for bit."""
    seeded = load_map(disk, DIRECTORY, options())
    after = disk.crash_choosing(lambda _: 0, lambda _: 0)
    assert load_map(after, DIRECTORY, options()) == seeded


@pytest.mark.parametrize(
    ("changed", "option"),
    [
        (options(nodes=4), "cluster.nodes"),
        (options(shards=5), "cluster.shards"),
        (options(replicas=1), "cluster.replicas"),
    ],
)
def test_contradiction_is_refused(disk: SimDisk, changed: ClusterOptions, option: str) -> None:
    """Keys would be looked for where they are not: the option and the file are named."""
    load_map(disk, DIRECTORY, options())
    with pytest.raises(DataDirError, match=option) as refusal:
        load_map(disk, DIRECTORY, changed)
    assert "/d/map" in str(refusal.value)


def test_damaged_map_is_refused(disk: SimDisk) -> None:
    """A flipped bit in the map is found by its checksum, and the file is named."""
    load_map(disk, DIRECTORY, options())
    disk.flip_bit(DIRECTORY / "map", 40)
    with pytest.raises(DataDirError, match="/d/map: checksum mismatch"):
        load_map(disk, DIRECTORY, options())
