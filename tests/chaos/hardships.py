"""The hardships: what is done to three nodes while clients are at work, one stage each."""

import contextlib
import fcntl
import itertools
import os
import resource
import select
import socket
import termios
import time
import urllib.request
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Any, ClassVar

from hardship_evidence import Evidence

from raftkv.bench.processes import workers_of
from raftkv.chaos import disks
from raftkv.chaos.waiting import wait_until
from raftkv.client import Client, RaftkvError
from raftkv.testing import LocalCluster
from raftkv.testing.layout import HOST
from raftkv.testing.processes import RAFTKV_COMMAND

MIB = 2**20
ASK_S = 5.0
READYZ_S = 10.0
WHOLE_S = 300.0
"""How soon a node must be ready again, and a cluster whole once nothing hurts it.

A node needs two seconds of processor to start; this is for machines that give it a hundredth."""
SPACE_S = 30.0
"""How soon a node must take writes again once its disk has room."""
DESCRIPTORS = 64
CONNECTIONS = 100
"""Idle ones to each node, more than it has descriptors for."""
PIPE_BYTES = 4096
"""The smallest pipe: some forty lines fill it."""


class Trial:
    """The cluster of a stage, and what is known of it."""

    def __init__(self, cluster: LocalCluster, evidence: Evidence, random: Random) -> None:
        self.cluster = cluster
        self.evidence = evidence
        self.random = random
        self.stack = contextlib.ExitStack()
        """What must be taken away after the nodes have ended."""
        self.deadline = 0.0

    @property
    def is_over(self) -> bool:
        """Whether the time of the stage is."""
        return time.monotonic() > self.deadline

    def rest(self, seconds: float) -> None:
        """Let the clients work for a while, or until the stage is over."""
        time.sleep(max(0.0, min(seconds, self.deadline - time.monotonic())))

    def data(self, name: str) -> Path:
        """A node's data directory."""
        return self.cluster.node(name).directory / "data"

    def facts(self, name: str) -> Mapping[str, Any] | None:
        """What a node says of itself; None if it does not answer."""
        with Client(self.cluster.node(name).url, timeout_s=ASK_S) as client:
            try:
                return client.status("local")
            except RaftkvError:
                return None

    def kill_and_start(self, name: str) -> None:
        """Kill a node, start it, and wait until it is ready."""
        self.cluster.kill(name)
        self.evidence.restarts += 1
        self.cluster.start_node(name)
        self.cluster.wait_ready(WHOLE_S, only=(name,))


class PatientCluster(LocalCluster):
    """One that may take its time, as on a machine with two cores and forty processes."""

    def is_ready(self, name: str) -> bool:
        """Whether one node says that it is ready, if it takes as long as a client would wait."""
        try:
            with urllib.request.urlopen(  # noqa: S310 -- http:// on loopback
                f"{self.node(name).url}/readyz", timeout=READYZ_S
            ) as response:
                return bool(response.status == 200)
        except OSError:
            return False


class Stage(ABC):
    """One hardship and the cluster that it comes to."""

    name: ClassVar[str]
    share: ClassVar[float] = 1.0
    """Of the time, beside the other stages."""
    hardships: ClassVar[tuple[str, ...]]
    """What must be seen to take effect."""
    shards: ClassVar[int] = 4
    options: ClassVar[Mapping[str, Mapping[str, int | bool | str]]] = {}
    command: ClassVar[tuple[str, ...]] = RAFTKV_COMMAND
    value_bytes: ClassVar[int] = 64
    keys: ClassVar[int] = 8
    clients: ClassVar[int] = 12
    rate_per_s: ClassVar[float] = 40.0
    timeout_s: ClassVar[float] = 10.0
    attempt_s: ClassVar[float] = 2.0

    def prepare(self, trial: Trial) -> None:  # noqa: B027 -- most have nothing to prepare
        """Make its surroundings, before a node is started."""

    @abstractmethod
    def hurt(self, trial: Trial) -> None:
        """Do it, again and again, until the stage is over; take it away in the end."""


class _LogPipe(Stage):
    """Standard output and error are one pipe; killed nodes give the others something to say."""

    share = 0.5
    options: ClassVar = {"log": {"level": "debug"}}

    def hurt(self, trial: Trial) -> None:
        """Kill one node after the other, for the others to speak of."""
        for name in itertools.cycle(trial.cluster.names):
            trial.rest(10.0)
            self.look(trial)
            if trial.is_over:
                return
            trial.kill_and_start(name)

    @abstractmethod
    def look(self, trial: Trial) -> None:
        """See whether the pipe has taken effect."""


class ClosedPipe(_LogPipe):
    """Nobody can ever read what the nodes say."""

    name = "log pipe closed"
    hardships = ("lines dropped",)

    def prepare(self, trial: Trial) -> None:
        """Give each node a pipe without a reader."""
        for name in trial.cluster.names:
            reader, writer = os.pipe()
            os.close(reader)
            trial.stack.callback(os.close, writer)
            trial.cluster.process(name).output = writer

    def look(self, trial: Trial) -> None:
        """Ask who has dropped lines."""
        for name in trial.cluster.names:
            facts = trial.facts(name)
            dropped = 0 if facts is None else facts["metrics"]["log_lines_dropped"]
            trial.evidence.hardships["lines dropped"] += dropped > 0


class UnreadPipe(_LogPipe):
    """Somebody could read what the nodes say, and never does."""

    name = "log pipe unread"
    hardships = ("pipes full",)

    def prepare(self, trial: Trial) -> None:
        """Give each node a small pipe."""
        self._readers: list[int] = []
        for name in trial.cluster.names:
            reader, writer = os.pipe()
            fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
            trial.stack.callback(os.close, writer)
            trial.stack.callback(os.close, reader)
            trial.cluster.process(name).output = writer
            self._readers.append(reader)

    def look(self, trial: Trial) -> None:
        """Measure what is in the pipes."""
        for reader in self._readers:
            unread = int.from_bytes(fcntl.ioctl(reader, termios.FIONREAD, bytes(4)), "little")
            trial.evidence.hardships["pipes full"] += unread > PIPE_BYTES * 3 // 4


class FullDisk(Stage):
    """The disks of one, of two and of all nodes are filled to the last byte, and emptied."""

    name = "full disk"
    hardships = ("one", "a majority", "all")
    options: ClassVar = {
        "limits": {"wal_segment_bytes": MIB, "snapshot_after_entries": 400},
    }
    value_bytes = 16_384
    rate_per_s = 60.0

    def prepare(self, trial: Trial) -> None:
        """Give each node a small disk."""
        for name in trial.cluster.names:
            disks.move_to_small_disk(trial.data(name), "48m")
            trial.stack.callback(disks.unmount, trial.data(name))

    def hurt(self, trial: Trial) -> None:
        """Fill them until it shows, wait, make room, and wait until that shows."""
        for hardship, count in itertools.cycle(zip(self.hardships, (1, 2, 3), strict=True)):
            if trial.is_over:
                return
            full = trial.random.sample(trial.cluster.names, count)
            ballasts = [disks.fill(trial.data(name)) for name in full]
            # A node notices when it wants its next segment, for which clients have to write.
            seen = wait_until(lambda full=full: _full(trial, full), 15.0)  # type: ignore[misc]
            trial.evidence.hardships[hardship] += seen
            trial.rest(5.0)
            for ballast in ballasts:
                ballast.unlink()
            if not wait_until(lambda full=full: _spacious(trial, full), SPACE_S):  # type: ignore[misc]
                trial.evidence.findings.append(
                    f"{', '.join(full)}: no space within {SPACE_S:g} s after there was some"
                )
            trial.rest(5.0)


def _has_space(trial: Trial, name: str) -> bool | None:
    facts = trial.facts(name)
    return None if facts is None else bool(facts["has_space"])


def _full(trial: Trial, names: Sequence[str]) -> bool:
    """Whether so many are full that it shows: once no majority has room nobody wants a segment."""
    full = sum(_has_space(trial, name) is False for name in names)
    return full >= min(len(names), 2)


def _spacious(trial: Trial, names: Sequence[str]) -> bool:
    return all(_has_space(trial, name) for name in names)


class _Descriptors(Stage):
    """So few descriptors, and more connections than those."""

    share = 0.5
    options: ClassVar = {"limits": {"wal_segment_bytes": MIB, "snapshot_after_entries": 400}}
    value_bytes = 4096


class FewDescriptors(_Descriptors):
    """All processes have few from the start; a killed node has to come back with those."""

    name = f"{DESCRIPTORS} descriptors"
    hardships = ("connections refused",)
    command = ("prlimit", f"--nofile={DESCRIPTORS}:{DESCRIPTORS}", *RAFTKV_COMMAND)

    def hurt(self, trial: Trial) -> None:
        """Have a crowd of connections for a while, then kill a node."""
        for name in itertools.cycle(trial.cluster.names):
            if trial.is_over:
                return
            with crowd(trial.cluster, CONNECTIONS) as closed:
                trial.rest(15.0)
                trial.evidence.hardships["connections refused"] += closed()
            trial.rest(5.0)
            trial.kill_and_start(name)


class FewerDescriptors(_Descriptors):
    """Running processes are left with as few, and are given theirs back."""

    name = f"{DESCRIPTORS} descriptors of running nodes"
    hardships = ("connections refused",)

    def hurt(self, trial: Trial) -> None:
        """Lower the limits of one node after the other, then of all; then comes a crowd."""
        for names in itertools.cycle(
            [*((name,) for name in trial.cluster.names), ("n1", "n2", "n3")]
        ):
            if trial.is_over:
                return
            with contextlib.ExitStack() as stack:
                engines = [trial.cluster.pid(name) for name in names]
                workers = [pid for engine in engines for pid in workers_of(engine)]
                for pid in (*engines, *workers):
                    stack.enter_context(no_more_than(DESCRIPTORS, pid))
                closed = stack.enter_context(crowd(trial.cluster, CONNECTIONS))
                trial.rest(10.0)
                trial.evidence.hardships["connections refused"] += closed()
            trial.rest(5.0)


@contextlib.contextmanager
def no_more_than(descriptors: int, pid: int) -> Iterator[None]:
    """Leave a running process so many descriptors for a while; as root, who may give them back."""
    old = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (descriptors, old[1]))
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            resource.prlimit(pid, resource.RLIMIT_NOFILE, old)


@contextlib.contextmanager
def crowd(cluster: LocalCluster, connections: int) -> Iterator[Callable[[], int]]:
    """Hold so many idle connections to each node; yields what counts those that are not served."""
    with contextlib.ExitStack() as stack:
        made = []
        for node in cluster.layout.nodes:
            for _ in range(connections):
                one = stack.enter_context(socket.socket())
                one.settimeout(0.0)
                one.connect_ex((HOST, node.http_port))
                made.append(one)

        def unserved() -> int:
            """Ask on all; who gets no answer at once was not let in."""
            for one in made:
                with contextlib.suppress(OSError):
                    one.send(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
            time.sleep(1.0)
            poll = select.poll()
            for one in made:
                poll.register(one, select.POLLIN)
            return len(made) - len(poll.poll(0))

        yield unserved


class ManyShards(Stage):
    """As many shards as are documented; nodes are killed in turn."""

    name = "256 shards"
    hardships = ("leaders killed",)
    shards = 256

    def hurt(self, trial: Trial) -> None:
        """Kill one node after the other, whatever it leads."""
        for name in itertools.cycle(trial.cluster.names):
            trial.rest(20.0)
            if trial.is_over:
                return
            facts = trial.facts(name)
            led = facts is not None and facts["metrics"]["groups_led"] > 0
            trial.evidence.hardships["leaders killed"] += led
            trial.kill_and_start(name)


class LargeValues(Stage):
    """Values as large as they may be, written and read through all nodes at once."""

    name = "16 MiB values"
    hardships = ("at once",)
    options: ClassVar = {"http": {"value_bytes_max": 16 * MIB}}
    value_bytes = 16 * MIB
    keys = 3
    clients = 6
    rate_per_s = 2.0
    timeout_s = 60.0
    attempt_s = 30.0

    def hurt(self, trial: Trial) -> None:
        """The clients do it; see that they meet."""
        while not trial.is_over:
            trial.rest(2.0)
            facts = [trial.facts(name) for name in trial.cluster.names]
            busy = sum(
                worker["body_bytes"] >= 16 * MIB or worker["in_flight"] > 1
                for said in facts
                if said is not None
                for worker in said["http"]["workers"]
            )
            trial.evidence.hardships["at once"] += busy > 0


STAGES: tuple[type[Stage], ...] = (
    ClosedPipe,
    UnreadPipe,
    FullDisk,
    FewDescriptors,
    FewerDescriptors,
    ManyShards,
    LargeValues,
)
