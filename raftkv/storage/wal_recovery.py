"""Reading the write-ahead log back: what may be cut, what is damage, and what it all adds up to.

Nothing here changes the disk: a log that is refused is left exactly as it was found.
"""

import struct
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import NoReturn

from raftkv.core.cluster_map import GroupId
from raftkv.storage.disk import Disk, DiskFile
from raftkv.storage.wal_format import (
    CARRY,
    RECORD,
    SECTOR_BYTES,
    SEGMENT_HEADER,
    UNIT_HEADER,
    Kind,
    Unit,
    WalDamaged,
    aligned,
    body_holds,
    check_segment_header,
    find_unit_header,
    lacks_sectors,
    read_unit_header,
    segment_name,
    segment_number,
    written_end,
)

Entry = tuple[bytes, int, int]
"""(payload, index, term)."""


@dataclass(slots=True)
class RecoveredGroup:
    """What the log remembers of one group.

    ``entries`` are contiguous and start right after ``compacted``, the (index, term) of the last
    entry that a snapshot covers ((0, 0): there was none).
    """

    term: int
    vote: str | None
    compacted: tuple[int, int]
    entries: list[Entry]


@dataclass(slots=True, eq=False)
class Segment:
    """One file of the log.

    ``end`` is where the next unit goes, a multiple of ``alignment``. ``tails`` maps each group with
    entries in this file to the last index that matters here: once the group is compacted to it, it
    needs the file no more.
    """

    number: int
    path: Path
    size: int
    marker: bytes
    alignment: int = SECTOR_BYTES
    file: DiskFile | None = None
    end: int = 0
    tails: dict[GroupId, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.end:
            self.end = self._first

    @property
    def _first(self) -> int:
        """Where the first unit goes: in a sector of its own, whatever tears there."""
        return aligned(SEGMENT_HEADER.size, self.alignment)

    @property
    def empty(self) -> bool:
        """Whether no unit was written here yet."""
        return self.end == self._first

    def end_with(self, size: int) -> int:
        """Where the next unit goes after one more of ``size`` bytes."""
        return aligned(self.end + size, self.alignment)


def forget_from(segments: list[Segment], group: GroupId, index: int) -> None:
    """Entries of ``group`` from ``index`` on are gone, so they keep no file alive."""
    for segment in segments:
        if segment.tails.get(group, 0) >= index:
            segment.tails[group] = index - 1


@dataclass(slots=True)
class Span:
    """Bytes ``start`` to ``end`` of a segment."""

    segment: Segment
    start: int
    end: int


@dataclass(slots=True)
class Scan:
    """A log that holds: where it goes on, what it contains, what has to be mended first."""

    segments: list[Segment]
    position: int  # of the segment with the last unit, in segments
    sequence: int  # of the last unit
    crc: int  # of the last unit
    groups: "dict[GroupId, ReplayedGroup]"
    last_unit: Span | None
    cut: Span | None  # remains of a unit that was never synced
    cut_reason: str
    cut_sequence: int


class ReplayedGroup:
    """One group while its records are replayed.

    Entries ``base + 1`` to ``last`` are at hand. Those between ``compacted`` and ``base`` were in
    a segment that is gone; that is right only if a later record says that they are not needed.
    """

    __slots__ = (
        "base", "compacted_index", "compacted_term", "entries", "last", "segment", "term", "vote",
    )  # fmt: skip

    def __init__(self) -> None:
        self.term = 0
        self.vote: str | None = None
        self.compacted_index = 0
        self.compacted_term = 0
        self.base = 0
        self.last = 0
        self.entries: list[Entry] = []
        self.segment: Segment | None = None  # the last one that has entries of this group

    def carried(self) -> tuple[int, str | None, int, int, int]:
        """What a CARRY record says about a group."""
        return self.term, self.vote, self.compacted_index, self.compacted_term, self.last

    def truncate_from(self, index: int) -> None:
        """Drop ``index`` and what follows."""
        if index <= self.base:
            self.entries.clear()
            self.base = index - 1
        else:
            del self.entries[index - self.base - 1 :]
        self.last = index - 1

    def compact(self, index: int, term: int) -> None:
        """Drop everything up to ``index``; beyond the end it drops all and restarts there."""
        self.compacted_index, self.compacted_term = index, term
        if index >= self.last:
            self.entries.clear()
            self.base = self.last = index
        elif index > self.base:
            del self.entries[: index - self.base]
            self.base = index


class Replay:
    """Applies records in log order and refuses any that cannot follow those before it."""

    def __init__(self) -> None:
        self.groups: dict[GroupId, ReplayedGroup] = {}
        self.segments: list[Segment] = []  # those replayed to their end
        self._is_first_segment = True
        self._carries_missing = 0

    def end_of_segment(self, segment: Segment) -> None:
        """Note which entries this segment holds."""
        for name, group in self.groups.items():
            if group.segment is segment:
                segment.tails[name] = group.last
        self.segments.append(segment)
        self._is_first_segment = self._is_first_segment and segment.empty

    def unit(self, data: bytes, unit: Unit, segment: Segment) -> None:
        """Apply one unit's records."""
        position, end = unit.body, unit.end
        # Locals, no calls, no GroupId in the common case: this loop is what a restart waits for.
        groups, append = self.groups, Kind.APPEND
        unpack, header = RECORD.unpack_from, RECORD.size
        must_start = segment.empty
        while position < end:
            body = position + header
            if body > end:
                _refuse(segment, position, "record header is cut off")
            kind, shard, generation, first, second, length = unpack(data, position)
            after = body + length
            if after > end:
                _refuse(segment, position, "record is longer than its unit")
            if (
                kind == append
                and not must_start
                and (group := groups.get((shard, generation))) is not None  # type: ignore[call-overload] # a GroupId equals its tuple
                and first == group.last + 1
            ):
                group.last = first
                group.segment = segment
                group.entries.append((data[body:after], first, second))
            else:
                name = GroupId(shard, generation)
                if (kind == Kind.SEGMENT_START) != must_start:
                    reason = f"record kind {kind} at this place"
                elif kind == append:
                    reason = self._append(name, (data[body:after], first, second), segment)
                else:
                    reason = self._control(kind, name, first, second, data[body:after])
                if reason:
                    _refuse(segment, position, reason)
                must_start = False
            position = after
        if must_start or self._carries_missing:
            _refuse(segment, unit.start, "the segment's first unit does not carry every group")

    def _append(self, name: GroupId, entry: Entry, segment: Segment) -> str:
        """Apply an APPEND that is not the ordinary case: a group's first, or one that is wrong."""
        group = self.groups.get(name) or self._new_group(name)
        if entry[1] != group.last + 1:
            return f"entry {entry[1]} of group {name} follows entry {group.last}"
        group.last = entry[1]
        group.segment = segment
        group.entries.append(entry)
        return ""

    def _new_group(self, name: GroupId) -> ReplayedGroup:
        group = self.groups[name] = ReplayedGroup()
        return group

    def _control(self, kind: int, name: GroupId, first: int, second: int, body: bytes) -> str:
        """Apply a record other than APPEND; return why it cannot be, or nothing."""
        try:
            return self._control_decoded(kind, name, first, second, body)
        except (struct.error, UnicodeDecodeError) as error:
            return f"record kind {kind} is malformed: {error}"

    def _control_decoded(  # noqa: PLR0911 -- one return per kind reads best
        self, kind: int, name: GroupId, first: int, second: int, body: bytes
    ) -> str:
        if kind == Kind.SEGMENT_START:
            self._carries_missing = first
            if not self._is_first_segment and first != len(self.groups):
                return f"{first} groups carried, {len(self.groups)} known"
            return ""
        if kind == Kind.CARRY:
            return self._carry(name, first, body)
        group = self.groups.get(name) or self._new_group(name)
        if kind == Kind.HARD_STATE:
            if first < group.term:
                return f"term {first} of group {name} after term {group.term}"
            group.term, group.vote = first, body.decode() if second else None
            return ""
        if kind == Kind.TRUNCATE:
            if not group.compacted_index < first <= group.last:
                return f"group {name} has no entry {first} to truncate from"
            group.truncate_from(first)
            forget_from(self.segments, name, first)
            return ""
        if kind == Kind.COMPACT:
            if first <= group.compacted_index:
                return f"group {name} compacted to {first} after {group.compacted_index}"
            group.compact(first, second)
            return ""
        return f"record kind {kind} is unknown"

    def _carry(self, name: GroupId, term: int, body: bytes) -> str:
        compacted_index, compacted_term, last, has_vote = CARRY.unpack_from(body)
        vote = body[CARRY.size :].decode() if has_vote else None
        self._carries_missing -= 1
        if self._is_first_segment:
            group = self._new_group(name)
            group.term, group.vote = term, vote
            group.compacted_index, group.compacted_term = compacted_index, compacted_term
            group.base = group.last = last
            return ""
        known = self.groups.get(name)
        carried = (term, vote, compacted_index, compacted_term, last)
        if known is None or known.carried() != carried:
            return f"carried state of group {name} is not what the segments before say"
        return ""


def _refuse(segment: Segment, offset: int, reason: str) -> NoReturn:
    raise WalDamaged(segment.path, offset, reason)


@dataclass(slots=True)
class _Bad:
    """The first unit that does not check."""

    segment: Segment
    offset: int
    end: int
    reason: str


class Scanner:
    """Reads all segments in order, one at a time in memory.

    A bad unit is cut only if it is what a power cut may leave of a write that was not synced:

    * Nothing was written after it. Unit N+1 is written only after unit N was synced, so anything
      at all behind a unit, in whatever shape, proves that it was once good.
    * At least one of its sectors is blank, as all were before, that would not be if it had been
      written. A sector is written whole or not at all, so a unit that is all there and does not
      hold was damaged later.

    Units share no sector, so what tears while one is written is its own.
    """

    def __init__(self, disk: Disk, directory: Path, identity: str) -> None:
        self._disk = disk
        self._directory = directory
        self._identity = identity
        self._replay = Replay()
        self._sequence: int | None = None  # of the last good unit; None: not known yet
        self._crc = 0
        self._bad: _Bad | None = None
        self._last_unit: Span | None = None

    def scan(self) -> Scan:
        """Read the whole log or raise WalDamaged."""
        numbers = self._segment_numbers()
        if numbers[0] == 1:
            self._sequence = 0  # the very first unit is number 1 and follows nothing
        for number in numbers:
            self._read_segment(number)
        return self._result()

    def _segment_numbers(self) -> list[int]:
        names = self._disk.listdir(self._directory)
        numbers = sorted(n for n in map(segment_number, names) if n is not None)
        if not numbers:
            raise WalDamaged(self._directory, 0, "no log here, though this node was initialised")
        for number, after in pairwise(numbers):
            if after != number + 1:
                missing = self._directory / segment_name(number + 1)
                raise WalDamaged(missing, 0, "segment is missing between others")
        return numbers

    def _read_segment(self, number: int) -> None:
        path = self._directory / segment_name(number)
        file = self._disk.open(path)
        try:
            size = file.size()
            data = file.pread(size, 0)
        finally:
            file.close()
        marker, alignment = check_segment_header(data, path, number, self._identity)
        segment = Segment(number, path, size, marker, alignment)
        if self._bad is None:
            self._read_units(segment, data)
        else:
            self._expect_nothing(segment, data)
        if self._sequence is None:
            # Older segments are deleted only once this one begins with a synced unit.
            _refuse(segment, segment.end, "nothing here, but older segments are gone")
        self._replay.end_of_segment(segment)

    def _read_units(self, segment: Segment, data: bytes) -> None:
        while True:
            offset = segment.end
            unit = read_unit_header(data, offset, segment.marker)
            if unit is None:
                end = written_end(data, offset)
                if end > offset:
                    self._judge_headless(segment, data, offset, end)
                return
            if not self._follows(unit):
                self._refuse_order(segment, unit)
            if not body_holds(data, unit):
                self._judge_body(segment, data, unit)
                return
            self._replay.unit(data, unit, segment)
            segment.end = segment.end_with(unit.end - unit.start)
            self._sequence, self._crc = unit.sequence, unit.crc
            self._last_unit = Span(segment, unit.start, unit.end)

    def _follows(self, unit: Unit) -> bool:
        if self._sequence is None:
            return True
        return unit.sequence == self._sequence + 1 and unit.before == self._crc

    def _refuse_order(self, segment: Segment, unit: Unit) -> NoReturn:
        """A whole header was never torn: if it does not chain, what it should follow is lost."""
        _refuse(
            segment,
            unit.start,
            f"unit {unit.sequence} does not follow unit {self._sequence}: what lay between is lost",
        )

    def _judge_headless(self, segment: Segment, data: bytes, offset: int, end: int) -> None:
        """Refuse what no unfinished write leaves where a unit's header should be.

        What is behind it is the rest of an unfinished unit, whose length nobody knows, or a whole
        unit. It can be no part of another one: the header of one that was synced is not blank.
        """
        reason = "unit header is broken"
        expected = self._expected(segment, offset, reason)
        later = find_unit_header(
            data, offset + 1, segment.marker, lambda unit: unit.sequence > expected
        )
        if later is not None:
            _refuse(
                segment,
                offset,
                f"{reason}, but unit {later.sequence} after it at byte {later.start} is not",
            )
        sectors = aligned(offset + UNIT_HEADER.size, SECTOR_BYTES)
        if not lacks_sectors(data, offset, min(sectors, len(data)), 0):
            _refuse(segment, offset, f"{reason}, though its sector was written")
        self._bad = _Bad(segment, offset, end, reason)

    def _judge_body(self, segment: Segment, data: bytes, unit: Unit) -> None:
        """Refuse a broken unit that was synced: by what lies behind it, or as it is all there."""
        reason = f"unit {unit.sequence} is broken"
        self._expected(segment, unit.start, reason)
        end = written_end(data, unit.start)
        if end > aligned(unit.end, segment.alignment):
            _refuse(segment, unit.start, f"{reason}, but byte {end - 1} behind it was written")
        if not lacks_sectors(data, unit.start, unit.end, unit.blanks):
            _refuse(segment, unit.start, f"{reason}, though all of its sectors were written")
        self._bad = _Bad(segment, unit.start, end, reason)

    def _expected(self, segment: Segment, offset: int, reason: str) -> int:
        """The number of the unit that should be here; refuses where one must be."""
        if self._sequence is None:
            # Older segments are deleted only once this one begins with a synced unit.
            _refuse(segment, offset, f"{reason}, and it carried all groups' states")
        return self._sequence + 1

    def _expect_nothing(self, segment: Segment, data: bytes) -> None:
        """Refuse if anything was written in a segment after the one with the bad unit."""
        bad = self._bad
        if bad is not None and written_end(data, SEGMENT_HEADER.size) > SEGMENT_HEADER.size:
            _refuse(bad.segment, bad.offset, f"{bad.reason}, but {segment.path.name} follows it")

    def _result(self) -> Scan:
        segments = self._replay.segments
        self._check_complete()
        last = self._last_unit
        bad = self._bad
        sequence = self._sequence or 0  # never None here: _read_segment saw to that
        return Scan(
            segments=segments,
            position=segments.index(last.segment) if last else 0,
            sequence=sequence,
            crc=self._crc,
            groups=self._replay.groups,
            last_unit=last,
            cut=Span(bad.segment, bad.offset, bad.end) if bad else None,
            cut_reason=bad.reason if bad else "",
            cut_sequence=sequence + 1,
        )

    def _check_complete(self) -> None:
        """Refuse if a segment was removed whose entries are still needed."""
        for name, group in self._replay.groups.items():
            if group.base > group.compacted_index:
                first = self._replay.segments[0]
                _refuse(
                    first,
                    0,
                    f"entries {group.compacted_index + 1} to {group.base} of group {name} "
                    f"are gone: an older segment was removed",
                )
