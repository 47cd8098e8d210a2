"""Small disks for the nodes' data, to be filled: tmpfs mounts, hence for root only.

``private_mounts`` gives this process a mount namespace of its own. What it mounts is then seen by
its children only and is gone with the last of them, however they end.
"""

import contextlib
import ctypes
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from raftkv.chaos.errors import ChaosError

_CLONE_NEWNS = 0x00020000
_MS_REC_PRIVATE = 0x4000 | 0x40000
_SHM = Path("/dev/shm")  # noqa: S108 -- where POSIX shared memory is


def private_mounts() -> None:
    """Mount for this process and its children only from now on; nothing if not root.

    ``/dev/shm`` becomes one of its own too, as libfaketime leaves files there when it is killed.
    """
    if os.geteuid() != 0:
        return
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWNS) != 0 or libc.mount(None, b"/", None, _MS_REC_PRIVATE, None) != 0:
        return  # not allowed in this container: mounts are then removed at the end only
    with contextlib.suppress(ChaosError):
        mount(_SHM, "64m")


def can_mount() -> bool:
    """Whether this process may have small disks; tried, as root in a container often may not."""
    if os.geteuid() != 0 or shutil.which("mount") is None:
        return False
    with tempfile.TemporaryDirectory(prefix="raftkv-chaos-") as name:
        directory = Path(name)
        try:
            mount(directory, "64k")
        except ChaosError:
            return False
        unmount(directory)
    return True


def mount(directory: Path, size: str) -> None:
    """Mount an empty small disk at an existing directory.

    Raises:
        ChaosError: It cannot be mounted.
    """
    options = ["-t", "tmpfs", "-o", f"size={size},mode=700", "raftkv-chaos"]
    done = subprocess.run(  # noqa: S603
        ["mount", *options, str(directory)],  # noqa: S607 -- of the system that we run on
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise ChaosError(
            f"cannot mount a small disk ({done.stderr.strip()}): leave disk out of --faults"
        )


def unmount(directory: Path) -> None:
    """Unmount it lazily: a process that hangs must not keep it for ever."""
    subprocess.run(["umount", "--lazy", str(directory)], check=True)  # noqa: S603, S607


def move_to_small_disk(data: Path, size: str) -> None:
    """Have what is in a directory on a small disk mounted in its place."""
    made = data.with_name(data.name + ".made")
    data.rename(made)
    data.mkdir(mode=0o700)
    mount(data, size)
    shutil.copytree(made, data, dirs_exist_ok=True)
    shutil.rmtree(made)


def fill(directory: Path) -> Path:
    """Leave not a byte on the disk of a directory; returns the file to remove for space."""
    ballast = directory / "ballast"
    with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(bytes(65_536)) == 65_536:  # noqa: PLR2004 -- a short write is the end
            pass
        while file.write(bytes(4096)):
            pass
    return ballast
