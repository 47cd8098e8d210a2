"""Small disks of their own for the nodes of a local cluster, to be filled and emptied again."""

import contextlib
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from raftkv.testing import LocalCluster


@contextlib.contextmanager
def small_disk(directory: Path, size: str) -> Iterator[Path]:
    """Mount an empty tmpfs at ``directory``, which must be there; always unmounted."""
    options = ["-t", "tmpfs", "-o", f"size={size},mode=700", "raftkv-test"]
    subprocess.run(["mount", *options, str(directory)], check=True)  # noqa: S603, S607
    try:
        yield directory
    finally:
        # Lazily: a node that hangs must not keep the mount for ever.
        subprocess.run(["umount", "--lazy", str(directory)], check=True)  # noqa: S603, S607


def fill(directory: Path) -> Path:
    """Leave not a byte on the disk of ``directory``; return the file to remove for space."""
    ballast = directory / "ballast"
    with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(bytes(4096)):
            pass
    return ballast


@contextlib.contextmanager
def cluster_on_small_disks(cluster: LocalCluster, size: str) -> Iterator[LocalCluster]:
    """Run a cluster that was not started yet with every node's data on a small disk."""
    cluster.prepare()
    with contextlib.ExitStack() as disks:
        for name in cluster.names:
            data = cluster.node(name).directory / "data"
            made = data.with_name("made")
            data.rename(made)
            data.mkdir(mode=0o700)
            disks.enter_context(small_disk(data, size))
            shutil.copytree(made, data, dirs_exist_ok=True)
            shutil.rmtree(made)
        with cluster:
            yield cluster
