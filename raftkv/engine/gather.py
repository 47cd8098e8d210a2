"""Requests over several shards: asked in parts, answered as one.

Each part is linearizable in its shard; the whole is not a snapshot of all shards. A part is a
request of its own for the router, which lets each be answered once, and by its own call.
"""

import heapq
from collections.abc import Callable, Iterator, Sequence
from typing import cast

from raftkv.core.operations import (
    Command,
    DeleteResult,
    Entry,
    GetResult,
    PutResult,
    RangeResult,
    Refused,
    TxnResult,
    WriteResult,
)
from raftkv.engine.requests import Answer, failure
from raftkv.raft.group import Group
from raftkv.raft.proposals import Rejection, command_bytes
from raftkv.raft.reads import Voucher
from raftkv.rpc.messages import (
    BatchRequest,
    BatchResult,
    Failure,
    GetRequest,
    Response,
    ScanRequest,
    Served,
)

BatchItem = Command | GetRequest
BatchItemResult = PutResult | DeleteResult | TxnResult | Refused | GetResult | Failure


class ScanGather:
    """Merges the shards' parts of a scan into one page in key order."""

    def __init__(
        self, request: ScanRequest, shards: Sequence[int], answer: Answer, node: str
    ) -> None:
        self._request = request
        self._shards = shards
        self._answer = answer
        self._node = node
        self._results: list[RangeResult] = []
        self._age_ms: int | None = None
        self._answered = False

    def parts(self) -> Iterator[tuple[ScanRequest, Answer]]:
        """One request per shard, with where its answer goes."""
        whole = self._request
        for shard in self._shards:
            part = ScanRequest(
                whole.start,
                whole.end,
                whole.limit,
                whole.keys_only,
                whole.consistency,
                whole.max_age_ms,
                whole.bytes_max,
                shard,
            )
            yield part, self._take

    def _take(self, response: Response, served: Served) -> None:
        if self._answered:
            return
        if not isinstance(response, RangeResult):
            self._answered = True
            self._answer(response, Served(self._node, served.shard, served.term))
            return
        self._results.append(response)
        if served.age_ms is not None:
            self._age_ms = max(served.age_ms, self._age_ms or 0)
        if len(self._results) == len(self._shards):
            self._answered = True
            self._answer(self._merged(), Served(self._node, age_ms=self._age_ms))

    def _merged(self) -> RangeResult:
        """Merge up to the limits; never past the end of a part that was itself cut."""
        ends = [result.entries[-1].key for result in self._results if result.more]
        horizon = min(ends) if ends else None
        merged = heapq.merge(
            *(result.entries for result in self._results), key=lambda entry: entry.key
        )
        taken: list[Entry] = []
        size = 0
        for entry in merged:
            size += len(entry.key) + len(entry.value)
            full = len(taken) >= self._request.limit or size > self._request.bytes_max
            if (taken and full) or (horizon is not None and entry.key > horizon):
                return RangeResult(tuple(taken), more=True)
            taken.append(entry)
        return RangeResult(tuple(taken), more=horizon is not None)


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
    ``finish`` gets the results, or a rejection if nothing of the batch was accepted at all, so
    that it can be tried elsewhere as a whole.
    """

    def __init__(
        self,
        request: BatchRequest,
        group: Group,
        finish: Callable[[BatchResult | Rejection], None],
        voucher: Voucher | None = None,
    ) -> None:
        self._operations = request.operations
        self._bytes_max = request.bytes_max
        self._group = group
        self._finish = finish
        self._voucher = voucher
        self._results: list[BatchItemResult | None] = [None] * len(request.operations)
        self._rejections: list[Rejection] = []
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
            self._group.reads.confirm(self._reads_done(reads), self._voucher)

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
    ) -> Callable[[Sequence[WriteResult] | Rejection], None]:
        def done(outcome: Sequence[WriteResult] | Rejection) -> None:
            if isinstance(outcome, Rejection):
                self._reject(places, outcome)
            else:
                for place, result in zip(places, outcome, strict=True):
                    self._results[place] = cast("BatchItemResult", result)
            self._part_done()

        return done

    def _reads_done(self, places: list[int]) -> Callable[[Rejection | None], None]:
        def done(rejection: Rejection | None) -> None:
            if rejection is not None:
                self._reject(places, rejection)
            else:
                self._read(places)
            self._part_done()

        return done

    def _read(self, places: list[int]) -> None:
        """Read what fits the answer; the rest may be asked for again."""
        size = 0
        for place in places:
            request = cast("GetRequest", self._operations[place])
            result = self._group.state.get(request.key)
            if result.entry is not None:
                size += len(result.entry.key) + len(result.entry.value)
            if size > self._bytes_max:
                detail = "the batch reads more than fits one answer: ask for this key again"
                self._results[place] = Failure("too_large", detail, definite=True)
            else:
                self._results[place] = result

    def _reject(self, places: list[int], rejection: Rejection) -> None:
        self._rejections.append(rejection)
        for place in places:
            self._results[place] = failure(rejection)

    def _part_done(self) -> None:
        self._missing -= 1
        if self._missing:
            return
        reasons = {rejection.reason for rejection in self._rejections}
        if len(self._rejections) == self._parts and len(reasons) == 1:
            self._finish(self._rejections[0])
        else:
            self._finish(BatchResult(cast("tuple[BatchItemResult, ...]", tuple(self._results))))
