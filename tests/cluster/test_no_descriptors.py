"""Nodes that have no file descriptor left: they refuse, definitely, and are well afterwards."""

import contextlib
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest

from raftkv import Client
from raftkv.client import DiskFullError
from raftkv.testing import LocalCluster

pytestmark = pytest.mark.cluster

VALUE = bytes(64 * 1024)
OPTIONS = {"limits": {"wal_segment_bytes": 2**20, "snapshot_after_bytes": 2 * 2**20}}
WRITES_MAX = 100


@contextlib.contextmanager
def no_more_descriptors(pid: int) -> Iterator[None]:
    """Let a process open nothing more for a while."""
    old = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    in_use = len(list(Path(f"/proc/{pid}/fd").iterdir()))
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (in_use, old[1]))
    yield
    resource.prlimit(pid, resource.RLIMIT_NOFILE, old)


def put_many(client: Client) -> None:
    """Fill several segments of a log."""
    for number in range(WRITES_MAX):
        client.put(b"%d" % number, VALUE)


def test_an_engine_without_descriptors_refuses_writes(tmp_path: Path) -> None:
    """It can make no further segment of its log; it serves reads, and takes writes again after."""
    with LocalCluster(tmp_path / "c", nodes=1, shards=1, options=OPTIONS) as cluster:
        client = cluster.client()
        client.put(b"before", b"v")
        pid = cluster.pid("n1")
        with no_more_descriptors(pid):
            with pytest.raises(DiskFullError):
                put_many(client)
            assert client.get(b"before") is not None
        cluster.wait_ready()
        put_many(client)
        assert cluster.pid("n1") == pid
        assert "cannot go on" not in cluster.logs()["n1"]
