"""What becomes of a state that a leader's snapshot has replaced."""

import gc
import subprocess
import sys

from host_world import HostWorld

from raftkv.engine.snapshot_keeper import ForkingWriter
from raftkv.raft.host import SnapshotPolicy


class Writer:
    """Counts how often it is told of a new state."""

    def __init__(self) -> None:
        self.settled = 0

    def settle(self) -> None:
        """Count."""
        self.settled += 1


def test_a_replaced_state_is_freed_in_slices_later() -> None:
    """The old state outlives the install, and is empty some turns of the loop after a check."""
    world = HostWorld(policy=SnapshotPolicy(after_bytes=1 << 20, after_entries=40))
    leader = world.leader()
    absent = next(machine for machine in world.machines.values() if machine is not leader)
    for number in range(60):
        world.put_all(leader, b"early%d" % number)
    world.run(1)
    absent.keeper.check()
    world.run(1)
    assert absent.snapshots == [None]
    absent.kill()
    for number in range(120):
        world.put_all(leader, b"k%d" % number)
        leader.keeper.check()
    absent.start()
    old = absent.group().state
    assert old.key_count == 60
    writer = absent.keeper._writer = Writer()  # type: ignore[assignment] # the part that is used
    absent.keeper.check()
    assert writer.settled == 0, "nothing was replaced yet"
    world.run_until(lambda: absent.group().state is not old)
    assert old.key_count == 60, "the install itself frees nothing"
    absent.keeper.check()
    assert old.key_count == 60, "nor does the check"
    assert writer.settled == 1
    world.run(0.1)
    assert old.key_count == 0
    absent.keeper.check()
    assert writer.settled == 1
    world.assert_agreed()


def test_a_new_state_is_left_out_of_garbage_collections() -> None:
    """What has been frozen is not walked any more."""
    try:
        large = [[number] for number in range(1000)]
        before = gc.get_freeze_count()
        ForkingWriter.settle(None)  # type: ignore[arg-type] # it needs nothing of its own
        assert gc.get_freeze_count() >= before + len(large)
    finally:
        gc.unfreeze()


def test_who_yields_the_disk_has_the_idle_class() -> None:
    """Seen by the kernel's own account, in a process of its own."""
    script = (
        "import ctypes, platform\n"
        "from raftkv.engine import snapshot_keeper as keeper\n"
        "keeper._yield_the_disk()\n"
        "number = {'x86_64': 252, 'aarch64': 31, 'riscv64': 31}[platform.machine()]\n"
        "print(ctypes.CDLL(None).syscall(number, 1, 0) >> 13)\n"
    )
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, check=True)  # noqa: S603 -- ours
    assert done.stdout == "3\n"
