"""What does Raft alone cost a put? ``python -P tests/bench/leader_turn.py [--other CHECKOUT]``.

One process: a leader of three replicas with nothing around it. A round is what a put of one client
brings to it: the proposal, a tick that sends it, the disk's sync, both followers' answers, and the
tick that commits and applies it. With ``--other``, the code of another checkout runs the same
rounds in turns with this one's, and the ratio of this one to it is printed; rounds are timed in
processor time, and of each run the fastest slice counts.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from random import Random
from typing import Any

from raftkv.bench.turns import in_turns
from raftkv.core.cluster_map import GroupId
from raftkv.core.operations import Command, Put
from raftkv.raft import messages as wire
from raftkv.raft.clock import SystemClock
from raftkv.raft.group import Group
from raftkv.raft.host import GroupConfig
from raftkv.raft.timing import Timing
from raftkv.raft.windows import PeerWindow

HERE = Path(__file__).resolve().parents[2]
GROUP = GroupId(0, 1)
SLICE_ROUNDS = 500
SLICES = 20


class Log:
    """A write-ahead log that is durable when it is told so."""

    def __init__(self) -> None:
        self.durable_lsn = 0
        self.lsn = 0

    def append(self, *_: Any) -> int:
        """Record, in no place."""
        self.lsn += 1
        return self.lsn

    truncate_from = set_hard_state = compact = append


class Node:
    """A node whose messages go nowhere."""

    full_peers: frozenset[str] = frozenset()

    def __init__(self) -> None:
        self.window = PeerWindow(lambda: None)

    def send(self, group: GroupId, peer: str, message: wire.RaftMessage) -> None:
        """Lose it."""

    def wake(self, group: GroupId) -> None:
        """It is ticked anyway."""

    def run_job(self, job: Any, done: Any) -> None:
        """There are no snapshots to write."""

    def event(self, event: Any) -> None:
        """Nobody looks."""

    def disk_stalled(self) -> bool:
        """Never."""
        return False

    def has_space(self) -> bool:
        """Always."""
        return True

    def window_to(self, _peer: str) -> PeerWindow:
        """One for both: it is never full."""
        return self.window


class NoFiles:
    """No snapshots."""

    def open(self) -> None:
        """None is there."""


def leader() -> tuple[Group, Log]:
    """A leader whose followers agree."""
    log = Log()
    group = Group(
        GroupConfig(
            id=GROUP,
            node="a",
            members=("a", "b", "c"),
            owns=lambda _: True,
            timing=Timing(heartbeat_s=0.1, election_min_s=0.5, election_max_s=1.0),
        ),
        store=log,
        recovered=None,
        files=NoFiles(),  # type: ignore[arg-type]
        host=Node(),
        clock=SystemClock(),
        random=Random(1),
    )
    for peer in "bc":
        group.peer_connected(peer)
    time.sleep(0.001)
    group.tick()
    group.receive("b", wire.PreVoteResponse(0, 1, granted=True))
    group.tick()
    sync(group, log)
    group.receive("b", wire.VoteResponse(group.term))
    if not group.is_leader:
        sys.exit("it was not elected")
    answer(group, log)
    return group, log


def sync(group: Group, log: Log) -> None:
    """The disk has everything."""
    log.durable_lsn = log.lsn
    group.wal_synced()


def answer(group: Group, log: Log) -> None:
    """So have the others."""
    sync(group, log)
    for peer in "bc":
        group.receive(peer, wire.AppendResponse(group.term, group.last_index + 1, success=True))
    group.tick()


def round_us() -> float:
    """Microseconds of processor time that a put takes."""
    group, log = leader()
    commands = (Command(Put(b"key", b"value" * 20)),)
    done: list[object] = []
    slices = []
    for _ in range(SLICES):
        began = time.process_time()
        for _ in range(SLICE_ROUNDS):
            group.propose(commands, done.append)
            group.tick()
            answer(group, log)
        slices.append(time.process_time() - began)
    if len(done) != SLICES * SLICE_ROUNDS:
        sys.exit("not every put was answered")
    return min(slices) / SLICE_ROUNDS * 1e6


def measured(checkout: Path) -> float:
    """Measure the code of a checkout once."""
    run = subprocess.run(  # noqa: S603 -- ourselves
        [sys.executable, "-P", __file__, "--once"],
        env=os.environ | {"PYTHONPATH": str(checkout)},
        capture_output=True,
        check=True,
        text=True,
    )
    return float(run.stdout)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--other", metavar="CHECKOUT", type=Path, help="of the other version")
    parser.add_argument("--pairs", type=int, default=11)
    parser.add_argument("--once", action="store_true", help="print microseconds, and nothing else")
    options = parser.parse_args()
    if options.once or options.other is None:
        sys.stdout.write(f"{round_us():.2f}\n")
        return
    pairs = [
        in_turns(number, lambda: measured(HERE), lambda: measured(options.other.absolute()))
        for number in range(options.pairs)
    ]
    ratios = [ours / theirs for ours, theirs in pairs]
    sys.stdout.write(
        f"a put at its leader: {statistics.median(ours for ours, _ in pairs):.1f} us, other "
        f"{statistics.median(theirs for _, theirs in pairs):.1f} us; ratio "
        f"{min(ratios):.3f}, median {statistics.median(ratios):.3f}, {max(ratios):.3f}\n"
    )


if __name__ == "__main__":
    main()
