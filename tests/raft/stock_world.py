"""Stock PySyncObj on the simulated world: nothing of raftkv's Raft is used here.

The only liberties: time is simulated, nodes hash the same in every process, and election
time-outs come first at whom the scenario says, which an asynchronous network may do as well.
"""

import contextlib
import errno
import pickle
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any
from unittest import mock

import pysyncobj.syncobj as stock
from pysyncobj import FAIL_REASON, SyncObj, SyncObjConf, replicated
from pysyncobj.config import SERIALIZER_STATE
from pysyncobj.journal import ResizableFile
from pysyncobj.node import Node
from pysyncobj.transport import Transport
from worlds import Answer, Read, World

_DEFINITE = {
    FAIL_REASON.QUEUE_FULL,
    FAIL_REASON.MISSING_LEADER,
    FAIL_REASON.DISCARDED,
    FAIL_REASON.NOT_LEADER,
    FAIL_REASON.REQUEST_DENIED,
}


class NamedNode(Node):  # type: ignore[misc] # PySyncObj ships no types
    """A node whose hash, hence the order in sets, is the same in every process."""

    def __hash__(self) -> int:
        return zlib.crc32(self.id.encode())


class SimTransport(Transport):  # type: ignore[misc] # PySyncObj ships no types
    """PySyncObj's transport over the simulated network; also the network's endpoint."""

    def __init__(self, world: "StockWorld", name: str) -> None:
        super().__init__(None, None, None)
        self._world = world
        self._name = name

    def send(self, node: Any, message: Any) -> bool:
        """Queue on the simulated network."""
        return self._world.network.send(self._name, node.id, message)

    def on_message(self, peer: str, payload: Any) -> None:
        """Hand over to PySyncObj; like its TCP transport, survive what it raises."""
        with self._world.catching():
            self._onMessageReceived(NamedNode(peer), payload)

    def on_connected(self, peer: str) -> None:
        """Tell PySyncObj."""
        self._onNodeConnected(NamedNode(peer))

    def on_disconnected(self, peer: str) -> None:
        """Tell PySyncObj."""
        self._onNodeDisconnected(NamedNode(peer))


class StockStore(SyncObj):  # type: ignore[misc] # PySyncObj ships no types
    """The smallest replicated state: the writes in the order in which they were applied."""

    def __init__(self, name: str, others: list[str], conf: Any, transport: Any) -> None:
        super().__init__(
            NamedNode(name), [NamedNode(other) for other in others], conf, transport=transport
        )
        self.applied: list[str] = []

    @replicated  # type: ignore[untyped-decorator] # PySyncObj ships no types
    def append(self, value: str) -> None:
        """Apply one write; the padding of large writes stays out of the state."""
        self.applied.append(value.rstrip("."))

    @replicated  # type: ignore[untyped-decorator] # PySyncObj ships no types
    def explode(self) -> None:
        """Apply a command that raises."""
        raise ZeroDivisionError("raised by a replicated method")


class BackgroundSnapshots:
    """A serializer of the kind that stock's documentation offers: it starts, and is polled.

    It writes the file that it was told to write, before it says that it is done.
    """

    def __init__(self, world: "StockWorld", name: str) -> None:
        self._world = world
        self._name = name
        self._job: Callable[[], None] | None = None

    def options(self) -> dict[str, Any]:
        """For SyncObjConf."""
        return {
            "serializer": self._begin,
            "serializeChecker": self._check,
            "deserializer": self._load,
        }

    def _begin(self, path: str, data: Any) -> None:
        content = pickle.dumps((self._world.values(self._name), *data))

        def write() -> None:
            Path(path).write_bytes(content)

        self._job = write

    def _check(self) -> Any:
        if self._job is None:
            return SERIALIZER_STATE.NOT_SERIALIZING
        self._job()
        self._job = None
        return SERIALIZER_STATE.SUCCESS

    def _load(self, path: str) -> Any:
        values, *data = pickle.loads(Path(path).read_bytes())  # noqa: S301 -- what stock does
        self._world.nodes[self._name].applied = values
        return tuple(data)


class StockWorld(World):
    """Stock nodes, in memory or, with a ``directory``, on stock journals and dumps."""

    def __init__(
        self,
        names: str,
        directory: Path | None = None,
        *,
        background_snapshots: bool = False,
        no_batch: bool = False,
    ) -> None:
        super().__init__(names)
        self.directory = directory
        self.nodes: dict[str, StockStore] = {}
        self._background_snapshots = background_snapshots
        self._no_batch = no_batch
        self._written_back: dict[Path, bytes] = {}
        self._full: set[str] = set()

    def conf(self, name: str) -> Any:
        """Stock configuration; nothing happens by itself but heartbeats and elections."""
        options: dict[str, Any] = {
            "autoTick": False,
            "appendEntriesPeriod": 0.05,
            "raftMinTimeout": 0.4,
            "raftMaxTimeout": 0.8,
            "logCompactionMinEntries": 10**9,
            "logCompactionMinTime": 10**9,
            "useFork": False,
            "appendEntriesUseBatch": not self._no_batch,
        }
        if self.directory is not None:
            options["journalFile"] = str(self._file(name, "journal"))
            options["fullDumpFile"] = str(self._file(name, "dump"))
        if self._background_snapshots:
            options |= BackgroundSnapshots(self, name).options()
        return SyncObjConf(**options)

    def start(self, name: str) -> None:
        """Construct the node and let it load what it finds."""
        transport = SimTransport(self, name)
        others = [other for other in self.names if other != name]
        self.nodes[name] = StockStore(name, others, self.conf(name), transport)
        self.network.attach(name, transport)
        self.live.add(name)
        self.turn(name)

    def crash(self, name: str) -> None:
        """Drop the node; its files are closed as the kernel would, which syncs nothing."""
        self.network.detach(name)
        self.live.discard(name)
        self.nodes.pop(name)._doDestroy()

    def turn(self, name: str) -> None:
        """Tick."""
        self.nodes[name].doTick()

    def submit(self, name: str, value: str, done: Callable[[Answer], None], size: int) -> None:
        """Queue the command; the stock fail reasons that mean "not executed" are definite."""

        def callback(_: Any, reason: int) -> None:
            if reason == FAIL_REASON.SUCCESS:
                done("ok")
            else:
                done("no" if reason in _DEFINITE else "unknown")

        with self.catching():
            self.nodes[name].append(value.ljust(size, "."), callback=callback)

    def values(self, name: str) -> list[str]:
        """What was applied."""
        return list(self.nodes[name].applied)

    def leads(self, name: str) -> bool:
        """Ask the node."""
        return bool(self.nodes[name]._isLeader())

    def term(self, name: str) -> int:
        """Ask the node."""
        return int(self.nodes[name].raftCurrentTerm)

    def expire(self, name: str) -> None:
        """Set the deadline that a random number would have set."""
        self.nodes[name]._SyncObj__raftElectionDeadline = 0

    def read(self, name: str) -> Read:
        """Read the local state of a node that says it leads: all that stock offers."""
        read = Read()
        if self.leads(name):
            read.values = self.values(name)
        return read

    def compact(self, name: str, *, finish: bool = True) -> None:
        """One tick writes the dump, the next trims the log."""
        self.nodes[name].forceLogCompaction()
        self.turn(name)
        if finish:
            self.turn(name)

    def damage_snapshot(self, name: str) -> None:
        """Overwrite the middle of the dump file: a single flipped bit often goes unnoticed."""
        path = self._file(name, "dump")
        content = bytearray(path.read_bytes())
        third = len(content) // 3
        content[third : 2 * third] = b"\xff" * third
        path.write_bytes(content)

    def write_back(self, name: str, *, log: bool = True) -> None:
        """Remember the files as they are now; nothing that stock does makes them durable."""
        for suffix in ("journal", "journal.meta", "dump"):
            path = self._file(name, suffix)
            if path.exists() and (log or suffix != "journal"):
                self._written_back[path] = path.read_bytes()

    def lose_power(self, name: str) -> None:
        """Files return to what was written back of them; without that they never were."""
        self.crash(name)
        for path in self._directory().glob(f"{name}.*"):
            path.unlink()
            if path in self._written_back:
                path.write_bytes(self._written_back[path])

    def fill_disk(self, name: str) -> None:
        """Stock writes its journal through one method; let it fail for this node."""
        self._full.add(name)

    def free_disk(self, name: str) -> None:
        """Let it succeed again."""
        self._full.discard(name)

    def stall_disk(self, name: str) -> None:
        """Stock never syncs, so a disk that takes no more can only show as failing writes."""
        self.fill_disk(name)

    def fails(self, path: str) -> bool:
        """Whether writes to this journal file fail."""
        return any(str(self._file(name, "journal")) == path for name in self._full)

    def wipe(self, name: str) -> None:
        """Remove the node's files."""
        self.crash(name)
        for path in self._directory().glob(f"{name}.*"):
            path.unlink()

    # --- stock only --------------------------------------------------------------------------

    def log_length(self, name: str) -> int:
        """Entries in the node's log, the one before the first included."""
        return int(self.nodes[name]._getRaftLogSize())

    def close(self) -> None:
        """Close the files of whoever still lives."""
        for name in sorted(self.live):
            self.crash(name)

    def _directory(self) -> Path:
        if self.directory is None:
            raise AssertionError("this world has no disk")
        return self.directory

    def _file(self, name: str, suffix: str) -> Path:
        return self._directory() / f"{name}.{suffix}"


@contextlib.contextmanager
def stock_worlds(directory: Path) -> Iterator[Callable[..., StockWorld]]:
    """Give a maker of started stock worlds, which are closed and forgotten at the end.

    PySyncObj reads time and chance through names of its module, and writes journals through one
    method: all three are patched while these worlds exist. Only the newest world's time passes.
    """
    worlds: list[StockWorld] = []

    def make(names: str, *, on_disk: bool = False, **options: Any) -> StockWorld:
        place = directory / str(len(worlds)) if on_disk else None
        if place is not None:
            place.mkdir(parents=True)
        world = StockWorld(names, place, **options)
        worlds.append(world)
        world.start_all()
        return world

    stock_write = ResizableFile.write

    def monotonic() -> float:
        return worlds[-1].clock.monotonic()

    def write(file: Any, offset: int, values: bytes) -> None:
        path = file._ResizableFile__fileName
        if any(world.fails(path) for world in worlds):
            raise OSError(errno.ENOSPC, "No space left on device", path)
        stock_write(file, offset, values)

    with (
        mock.patch.object(stock, "monotonicTime", monotonic),
        mock.patch.object(stock, "random", Random(0)),
        mock.patch.object(ResizableFile, "write", write),
    ):
        yield make
        for world in worlds:
            world.close()
