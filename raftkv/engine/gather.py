"""Requests over several shards: asked in parts, answered as one.

Each part is linearizable in its shard; the whole is not a snapshot of all shards. A part is a
request of its own for the router, which lets each be answered once, and by its own call.
"""

import heapq
import math
import operator
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple, cast

import msgspec

from raftkv.core.operations import (
    Command,
    KeyValue,
    Range,
    RangeResult,
    WriteResult,
)
from raftkv.core.shard.keyspace import RANGE_BYTES_MAX, RANGE_ENTRIES_MAX
from raftkv.core.shard.machine import StateMachine
from raftkv.engine.requests import Answer, failure_of
from raftkv.raft.group import Group
from raftkv.raft.proposals import GroupFailure, command_bytes
from raftkv.raft.reads import Voucher
from raftkv.rpc.messages import (
    BatchItemResult,
    BatchRequest,
    BatchResult,
    Failure,
    GetRequest,
    Response,
    ScanPart,
    ScanRequest,
    Served,
)

PARTS_AT_ONCE = 32
"""So many shards are asked at once for one page."""

BatchItem = Command | GetRequest


class _Share(NamedTuple):
    """What a shard is asked for: a number of entries, and a size in bytes."""

    limit: int
    bytes_max: int


class _Step(NamedTuple):
    """What comes next of a shard; without an entry that is known by its key and size alone."""

    key: bytes
    size_bytes: int
    shard: int
    entry: KeyValue | None


class ScanGather:
    """Merges the shards' shares of a scan into one page in key order.

    A page of many shards must cost about a page, not a page of each. So each shard is asked for
    its share of it, with some to spare, and says which key it would have gone on with. Where that
    key belongs on the page, the share was too small, and the shard is asked again for a larger one
    from the same beginning: what is used of a shard is of one moment, see ``docs/guarantees.md``.
    Shares at least double, and those of one round come to about a page.

    Args:
        ask: sends a request to its shard; the answer comes once, at once or later.
    """

    def __init__(
        self,
        request: ScanRequest,
        shards: Sequence[int],
        answer: Answer,
        node: str,
        ask: Callable[[ScanRequest, Answer], None],
    ) -> None:
        self._request = msgspec.structs.replace(  # a shard gives no more, however often it is asked
            request,
            limit=min(request.limit, RANGE_ENTRIES_MAX),
            bytes_max=min(request.bytes_max, RANGE_BYTES_MAX),
        )
        self._answer = answer
        self._node = node
        self._ask = ask
        self._parts: dict[int, ScanPart] = {}
        self._shares = dict.fromkeys(shards, self._first_share(len(shards)))
        self._to_ask = deque(shards)
        self._under_way = 0
        self._going_on = False
        self._age_ms: int | None = None
        self._answered = False

    def _first_share(self, shards: int) -> _Share:
        """An even share, and what chance adds to it: keys are spread by a hash.

        So many of the page's entries fall to a shard as in a Poisson distribution, and hardly ever
        three deviations more. Sizes vary as well: bytes are doubled.
        """
        mean = self._request.limit / shards
        entries = math.ceil(mean + 3 * math.sqrt(mean))
        bytes_max = 2 * math.ceil(self._request.bytes_max / shards)
        return self._bounded(entries, bytes_max)

    def _bounded(self, limit: int, bytes_max: int) -> _Share:
        return _Share(min(limit, self._request.limit), min(bytes_max, self._request.bytes_max))

    def start(self) -> None:
        """Ask the shards, a bounded number at a time."""
        if self._going_on:  # an answer that came at once, see below
            return
        self._going_on = True
        while not self._answered and (self._to_ask or not self._under_way):
            if self._to_ask and self._under_way < PARTS_AT_ONCE:
                self._ask_next()
            elif self._to_ask:
                break
            else:
                self._merge()
        self._going_on = False

    def _ask_next(self) -> None:
        shard, whole = self._to_ask.popleft(), self._request
        share = self._shares[shard]
        part = ScanRequest(
            whole.start,
            whole.end,
            share.limit,
            whole.keys_only,
            whole.consistency,
            whole.max_age_ms,
            share.bytes_max,
            shard,
        )
        self._under_way += 1
        self._ask(part, partial(self._take, shard))

    def _take(self, shard: int, response: Response, served: Served) -> None:
        self._under_way -= 1
        if self._answered:
            return
        if not isinstance(response, ScanPart):
            self._answered = True
            self._answer(response, Served(self._node, served.shard, served.term))
            return
        self._parts[shard] = response
        if served.age_ms is not None:
            self._age_ms = max(served.age_ms, self._age_ms or 0)
        self.start()

    def _merge(self) -> None:
        """Answer with the page, or ask those for more whose next key belongs on it."""
        taken: list[KeyValue] = []
        size = taken_bytes = 0
        more = False
        short: dict[int, _Step] = {}  # shards whose share was too small, in the order of keys
        steps = (_steps(shard, part) for shard, part in self._parts.items())
        for count, step in enumerate(heapq.merge(*steps, key=_key_of)):
            size += step.size_bytes
            more = count >= self._request.limit or (count > 0 and size > self._request.bytes_max)
            if more:
                break
            if step.entry is None:
                short[step.shard] = step
            elif not short:
                taken.append(step.entry)
                taken_bytes = size
        if not short:
            self._answered = True
            page = RangeResult(tuple(taken), more=more)
            self._answer(page, Served(self._node, age_ms=self._age_ms))
            return
        entries_left = math.ceil((self._request.limit - len(taken)) / len(short))
        bytes_left = math.ceil((self._request.bytes_max - taken_bytes) / len(short))
        for shard, step in short.items():
            had, part = self._shares[shard], self._parts[shard]
            needed = step.size_bytes + sum(map(entry_bytes, part.entries))
            self._shares[shard] = self._bounded(
                max(2 * had.limit, had.limit + entries_left),
                max(2 * had.bytes_max, had.bytes_max + bytes_left, needed),
            )
        if not taken:  # the first of a page comes whatever its size
            shard, step = next(iter(short.items()))
            if step.size_bytes > self._request.bytes_max:
                self._shares[shard] = _Share(1, step.size_bytes)
        self._to_ask.extend(short)


_key_of = operator.itemgetter(0)


def _steps(shard: int, part: ScanPart) -> Iterator[_Step]:
    for entry in part.entries:
        yield _Step(entry.key, entry_bytes(entry), shard, entry)
    if part.next_key is not None:
        yield _Step(part.next_key, part.next_bytes, shard, None)


def entry_bytes(entry: KeyValue) -> int:
    """What an entry counts in a page, in bytes."""
    return len(entry.key) + len(entry.value)


def scan_part(state: StateMachine, request: ScanRequest) -> ScanPart:
    """Read a shard's share of a page: not even one entry if the first is larger than that."""
    found = state.range(
        Range(request.start, request.end, request.limit, request.keys_only, request.bytes_max)
    )
    entries = found.entries
    if entries and entry_bytes(entries[0]) > request.bytes_max:
        return ScanPart((), entries[0].key, entry_bytes(entries[0]))
    if not found.more:
        return ScanPart(entries)
    behind = state.range(Range(entries[-1].key + b"\0", request.end, 1, request.keys_only))
    return ScanPart(entries, behind.entries[0].key, entry_bytes(behind.entries[0]))


class BatchGather:
    """Splits a batch by shard and puts the results back into the batch's order."""

    def __init__(
        self,
        request: BatchRequest,
        shard_of: Callable[[BatchItem], int | Failure],
        answer: Answer,
        node: str,
    ) -> None:
        self._answer = answer
        self._node = node
        self._operations = request.operations
        self._bytes_max = request.bytes_max
        self._results: list[BatchItemResult | None] = [None] * len(request.operations)
        self._places: dict[int, list[int]] = {}
        for place, operation in enumerate(request.operations):
            shard = shard_of(operation)
            if isinstance(shard, Failure):
                self._results[place] = shard
            else:
                self._places.setdefault(shard, []).append(place)
        self._missing = len(self._places)

    def parts(self) -> Iterator[tuple[BatchRequest, Answer]]:
        """One batch per shard, with where its answer goes."""
        if not self._places:
            self._finish()
        for shard, places in self._places.items():
            operations = tuple(self._operations[place] for place in places)
            share = self._bytes_max // len(self._places)
            yield BatchRequest(operations, shard, share), self._taker(places)

    def _taker(self, places: Sequence[int]) -> Answer:
        def take(response: Response, _: Served) -> None:
            if isinstance(response, BatchResult):
                for place, result in zip(places, response.results, strict=True):
                    self._results[place] = result
            else:
                for place in places:
                    self._results[place] = cast("Failure", response)
            self._missing -= 1
            if not self._missing:
                self._finish()

        return take

    def _finish(self) -> None:
        self._answer(
            BatchResult(cast("tuple[BatchItemResult, ...]", tuple(self._results))),
            Served(self._node),
        )


class LocalBatch:
    """One shard's part of a batch, at the shard's leader.

    The writes go into the log in as few pieces as fit, the reads are confirmed once for all.
    ``finish`` gets the results, or a failure if nothing of the batch was accepted at all, so
    that it can be tried elsewhere as a whole.
    """

    def __init__(
        self,
        request: BatchRequest,
        group: Group,
        finish: Callable[[BatchResult | GroupFailure], None],
        voucher: Voucher | None = None,
    ) -> None:
        self._operations = request.operations
        self._bytes_max = request.bytes_max
        self._group = group
        self._finish = finish
        self._voucher = voucher
        self._results: list[BatchItemResult | None] = [None] * len(request.operations)
        self._failures: list[GroupFailure] = []
        self._parts = 0
        self._missing = 0

    def start(self) -> None:
        """Propose and read."""
        pieces = list(self._pieces())
        reads = [
            i for i, operation in enumerate(self._operations) if isinstance(operation, GetRequest)
        ]
        self._parts = self._missing = len(pieces) + bool(reads)
        for places in pieces:
            commands = [cast("Command", self._operations[place]) for place in places]
            self._group.propose(commands, self._writes_done(places))
        if reads:
            self._group.read(partial(self._read, reads), self._voucher)

    def _pieces(self) -> Iterator[list[int]]:
        """Places of the writes, cut into pieces that fit a proposal."""
        limits = self._group.config.limits
        piece: list[int] = []
        size = 0
        for place, operation in enumerate(self._operations):
            if not isinstance(operation, Command):
                continue
            needed = command_bytes(operation)
            if piece and (
                len(piece) >= limits.batch_operations_max or size + needed > limits.batch_bytes_max
            ):
                yield piece
                piece, size = [], 0
            piece.append(place)
            size += needed
        if piece:
            yield piece

    def _writes_done(
        self, places: list[int]
    ) -> Callable[[Sequence[WriteResult] | GroupFailure], None]:
        def done(outcome: Sequence[WriteResult] | GroupFailure) -> None:
            if isinstance(outcome, GroupFailure):
                self._reject(places, outcome)
            else:
                for place, result in zip(places, outcome, strict=True):
                    self._results[place] = cast("BatchItemResult", result)
            self._part_done()

        return done

    def _read(self, places: list[int], state: StateMachine | GroupFailure) -> None:
        if isinstance(state, GroupFailure):
            self._reject(places, state)
        else:
            self._look(places, state)
        self._part_done()

    def _look(self, places: list[int], state: StateMachine) -> None:
        """Read what fits the answer; the rest may be asked for again."""
        size = 0
        for place in places:
            request = cast("GetRequest", self._operations[place])
            result = state.get(request.key)
            if result.entry is not None:
                size += len(result.entry.key) + len(result.entry.value)
            if size > self._bytes_max:
                detail = "the batch reads more than fits one answer: ask for this key again"
                self._results[place] = Failure("too_large", detail, definite=True)
            else:
                self._results[place] = result

    def _reject(self, places: list[int], failure: GroupFailure) -> None:
        self._failures.append(failure)
        for place in places:
            self._results[place] = failure_of(failure)

    def _part_done(self) -> None:
        self._missing -= 1
        if self._missing:
            return
        reasons = {failure.reason for failure in self._failures}
        if len(self._failures) == self._parts and len(reasons) == 1:
            self._finish(self._failures[0])
        else:
            self._finish(BatchResult(cast("tuple[BatchItemResult, ...]", tuple(self._results))))
