"""The cluster map on disk: ``node.toml`` seeds the first one, and only that.

Kept beside the data with a checksum. Once it is there it is what counts; a configuration that
contradicts it is refused, because keys would be looked for where they are not.
"""

from pathlib import Path

from raftkv.core.cluster_map import ClusterMap, decode_map, encode_map
from raftkv.core.errors import UndecodableError
from raftkv.core.placement import seed_map
from raftkv.engine.config import ClusterOptions
from raftkv.storage.checked_file import ChecksumError, read_checked, write_checked
from raftkv.storage.data_dir import DataDirError
from raftkv.storage.disk import Disk

NAME = "map"


def load_map(disk: Disk, directory: Path, options: ClusterOptions) -> ClusterMap:
    """Return the map that the directory holds, seeding it from ``options`` if there is none.

    Raises:
        DataDirError: the file is damaged, or ``options`` contradict it.
    """
    path = directory / NAME
    seed = seed_map(options.id, sorted(options.nodes), options.shards, options.replicas)
    try:
        body = read_checked(disk, path)
        if body is None:
            write_checked(disk, path, encode_map(seed))
            return seed
        stored = decode_map(body)
    except ChecksumError as error:
        raise DataDirError(str(error)) from error
    except UndecodableError as error:
        raise DataDirError(f"{path}: the cluster map cannot be read: {error}") from error
    _refuse_contradictions(path, stored, seed)
    return stored


def _refuse_contradictions(path: Path, stored: ClusterMap, seed: ClusterMap) -> None:
    """Compare what the configuration says with what the data were laid out by."""
    replicas = max(len(group.replicas) for group in stored.groups)
    wanted_replicas = max(len(group.replicas) for group in seed.groups)
    for option, have, want in (
        ("cluster.nodes", ",".join(stored.nodes), ",".join(seed.nodes)),
        ("cluster.shards", len(stored.ring.shards), len(seed.ring.shards)),
        ("cluster.replicas", replicas, wanted_replicas),
    ):
        if have != want:
            raise DataDirError(
                f"{option}: {want} in the configuration, but {path} was made with {have}; "
                "changing it needs a new cluster"
            )
