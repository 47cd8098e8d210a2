"""Sending a snapshot to a follower whose entries are gone, beside everything else that goes on.

Stock PySyncObj cuts a pickled dump into appends that skip log matching (H1), acknowledges a failed
install (H6) and installs older states (H7). Here chunks are messages of their own, windowed and of
lower priority than anything else; the file is checked and synced; the state is built from it in
slices; only then does it take the old one's place; and exactly its index is acknowledged.

File reads and writes run as jobs off the loop, one at a time per transfer.
"""

from collections.abc import Callable, Iterator
from typing import Protocol, cast

import msgspec

from raftkv.raft import messages as wire

CHUNK_BYTES = 256 * 1024
WINDOW_CHUNKS = 8


class ChunkBounds(msgspec.Struct, frozen=True):
    """In which pieces a snapshot travels, and how many may be under way."""

    chunk_bytes: int = msgspec.field(default_factory=lambda: CHUNK_BYTES)
    window_chunks: int = msgspec.field(default_factory=lambda: WINDOW_CHUNKS)


class SnapshotId(msgspec.Struct, frozen=True):
    """A snapshot ends with the entry (``index``, ``term``); ``size_bytes`` is its file's size."""

    index: int
    term: int
    size_bytes: int


class SnapshotReader(Protocol):
    """An open snapshot file; it stays readable when a newer one replaces it."""

    def records(self) -> Iterator[bytes]:
        """Return the state's records; what was built counts once the iterator has ended."""

    def read_chunk(self, offset: int, length: int) -> bytes:
        """Return raw bytes of the file."""

    def close(self) -> None:
        """Let go of the file."""


class SnapshotName(Protocol):
    """What a snapshot file says of itself: it ends with the entry (``index``, ``term``)."""

    @property
    def index(self) -> int:
        """Index of the last entry."""

    @property
    def term(self) -> int:
        """Term of the last entry."""


class SnapshotReceiver(Protocol):
    """A snapshot file that is being written from a leader's chunks, beside the one in place."""

    def write(self, offset: int, data: bytes) -> None:
        """Write raw bytes at ``offset``."""

    def seal(self) -> SnapshotName:
        """Check and sync the whole file; raises if it is not a good one, which is then gone."""

    def records(self) -> Iterator[bytes]:
        """Return the records of a sealed file; what was built counts once they have ended."""

    def publish(self) -> None:
        """Put a sealed file in the place of the one that is there, durably."""

    def abort(self) -> None:
        """Remove what was written."""


class SnapshotFiles(Protocol):
    """The snapshots of one group on this node's disk."""

    def open(self) -> tuple[SnapshotId, SnapshotReader] | None:
        """Open the one that is in place, None if there is none.

        Raises SnapshotBusy if so many are open that this one has to wait.

        One look: its name and its contents must be of the same file, whatever is renamed meanwhile.
        """

    def receive(self, snapshot: SnapshotId) -> SnapshotReceiver:
        """Begin to write one that a leader sends, in place of an unfinished one.

        Raises SnapshotBusy likewise, and DiskError.
        """


Job = Callable[[], object]
RunJob = Callable[[Job, Callable[[object, BaseException | None], None]], None]
"""Run a blocking job off the loop, then call back on it with the result or the exception."""


class Sender:
    """One snapshot on its way to one follower, in the order of its bytes."""

    def __init__(
        self,
        snapshot: SnapshotId,
        *,
        bounds: ChunkBounds | None = None,
        reader: SnapshotReader,
        run_job: RunJob,
        send: Callable[[wire.SnapshotChunk], None],
        failed: Callable[[BaseException], None],
        now: float,
    ) -> None:
        self.snapshot = snapshot
        self.progress_at = now
        bounds = bounds or ChunkBounds()
        self._chunk_bytes = bounds.chunk_bytes
        self._window_bytes = bounds.window_chunks * bounds.chunk_bytes
        self._reader = reader
        self._run_job = run_job
        self._send = send
        self._failed = failed
        self._sent = 0
        self._acknowledged = 0
        self._reading = False
        self._closed = False

    def go_on(self, term: int) -> None:
        """Read and send the next chunk, if the window has room."""
        size = self.snapshot.size_bytes
        window_full = self._sent - self._acknowledged >= self._window_bytes
        if self._closed or self._reading or window_full or self._sent >= size:
            return
        offset = self._sent
        self._reading = True

        def read_done(data: object, error: BaseException | None) -> None:
            self._reading = False
            if self._closed:
                self._reader.close()
                return
            if error is not None:
                self.close()
                self._failed(error)
                return
            if offset != self._sent:  # the follower asked for another place meanwhile
                self.go_on(term)
                return
            if not isinstance(data, bytes) or not data:
                self.close()
                self._failed(ValueError(f"{self.snapshot} ends early, at byte {offset}"))
                return
            self._sent += len(data)
            self._send(
                wire.SnapshotChunk(
                    term, self.snapshot.index, self.snapshot.term, size, offset, data
                )
            )
            self.go_on(term)

        self._run_job(lambda: self._reader.read_chunk(offset, self._chunk_bytes), read_done)

    def on_progress(self, message: wire.SnapshotProgress, now: float) -> None:
        """Called when the follower says which byte it wants next.

        Receivers outlive links and senders do not: an answer to an earlier sender of the very
        same file may come, and acknowledge more than this one has sent. It goes on from there.
        """
        self.progress_at = now
        self._acknowledged = max(0, min(message.offset, self.snapshot.size_bytes))
        if not message.in_order or self._acknowledged > self._sent:
            self._sent = self._acknowledged
        if self._acknowledged >= self.snapshot.size_bytes:
            self.close()  # the follower has it all: a file replaced meanwhile need not be kept
        self.go_on(message.term)

    def close(self) -> None:
        """Stop sending."""
        if not self._closed:
            self._closed = True
            if not self._reading:
                self._reader.close()


class Receiver:
    """One snapshot on its way in. ``on_sealed`` runs once the file is whole, checked and synced.

    It is called with what the file says of itself, or with the error that ended the transfer; a
    sealed file is its to publish or to abort. A group has one place for an unfinished file, so a
    receiver that is given up must be released, its last job done, before another may begin.
    """

    def __init__(
        self,
        snapshot: SnapshotId,
        peer: str,
        *,
        bounds: ChunkBounds | None = None,
        file: SnapshotReceiver,
        run_job: RunJob,
        report: Callable[[int], None],
        ask_again: Callable[[int], None],
        on_sealed: Callable[[SnapshotName | None, BaseException | None], None],
    ) -> None:
        self.snapshot = snapshot
        self.peer = peer
        self.finishing = False
        """Whether all bytes are here and the file is being checked and synced."""
        self.progress_at = 0.0
        """When a chunk came last, in monotonic seconds."""
        self._waiting_max = 2 * (bounds or ChunkBounds()).window_chunks
        self._file = file
        self._run_job = run_job
        self._report = report
        self._ask_again = ask_again
        self._on_sealed = on_sealed
        self._expected = 0
        self._busy = False
        self._closed = False
        self._chunks: list[tuple[int, bytes]] = []

    @property
    def released(self) -> bool:
        """Whether this receiver will never touch its file again."""
        return self._closed and not self._busy

    def take(self, offset: int, data: bytes, now: float) -> None:
        """Take a chunk; one that is not next is answered with what is."""
        self.progress_at = now
        if self._closed or self.finishing:
            return
        if offset != self._expected or len(self._chunks) > self._waiting_max:
            self._ask_again(self._expected)
            return
        self._expected += len(data)
        self._chunks.append((offset, data))
        self._go_on()

    def _go_on(self) -> None:
        if self._busy or self._closed:
            return
        if self._chunks:
            offset, data = self._chunks.pop(0)
            self._busy = True
            self._run_job(lambda: self._file.write(offset, data), self._written)
        elif self._expected >= self.snapshot.size_bytes:
            self._busy = self.finishing = True
            self._run_job(self._file.seal, self._sealed)

    def _written(self, _: object, error: BaseException | None) -> None:
        self._busy = False
        if self._closed:
            self._file.abort()
        elif error is not None:
            self.close()
            self._on_sealed(None, error)
        else:
            self._report(self._expected)
            self._go_on()

    def _sealed(self, name: object, error: BaseException | None) -> None:
        self._busy = False
        self._closed = True
        self._on_sealed(cast("SnapshotName | None", name), error)

    def close(self) -> None:
        """Give up and remove what was written; a file that is being checked is let be."""
        if not self._closed and not self.finishing:
            self._closed = True
            if not self._busy:
                self._file.abort()
