"""Serves a request at this node's replica of its shard: the leader's, or any for a stale read.

What a group refuses for want of leadership goes back to the router, which looks for the leader.
"""

from collections.abc import Callable, Sequence
from typing import cast

from raftkv.core.operations import Command, KeyWrite, WriteResult
from raftkv.core.shard.machine import StateMachine
from raftkv.engine.directory import Directory
from raftkv.engine.gather import LocalBatch, scan_part
from raftkv.engine.replica_table import ReplicaRecord
from raftkv.engine.requests import Pending, failure_of
from raftkv.raft.group import Group
from raftkv.raft.proposals import GroupFailure
from raftkv.rpc.messages import (
    BatchRequest,
    BatchResult,
    Facts,
    Failure,
    GetRequest,
    Response,
    ScanRequest,
    Served,
    TransferRequest,
    WriteRequest,
)
from raftkv.status.facts import HandedOver

Look = Callable[[StateMachine], Response]
"""Looks up in a state what a request asks for."""


class LocalService:
    """Serves what the router brings, and counts the load of each shard.

    Args:
        finish: called with a request, its answer and who gave it.
        find_leader: called with a request that is not answered here and may be tried again.
    """

    def __init__(
        self,
        *,
        node: str,
        directory: Directory,
        finish: Callable[[Pending, Response, Served], None],
        find_leader: Callable[[Pending], None],
    ) -> None:
        self.placed: Callable[[int, str | None, float | None], None] = lambda *_: None
        """Called when an operator has handed a shard's leadership to a node, for so many seconds;
        without a node it is to go where it belongs."""
        self._node = node
        self._directory = directory
        self._finish = finish
        self._find_leader = find_leader

    def serve(self, pending: Pending, replica: ReplicaRecord) -> None:
        """Serve a request of the shard of ``replica``.

        ``finish`` or ``find_leader`` is called with it, now or later.
        """
        request = pending.request
        group, load = replica.group, replica.load
        match request:
            case WriteRequest():
                load.writes += 1
                if load.sampled() and isinstance(request.command.operation, KeyWrite):
                    load.saw(request.command.operation.key)
                self._write(pending, group, request.command)
            case GetRequest():
                load.reads += 1
                key = request.key
                if load.sampled():
                    load.saw(key)
                self._read(pending, group, request, lambda state: state.get(key))
            case ScanRequest():
                load.reads += 1
                scan = request
                self._read(pending, group, scan, lambda state: scan_part(state, scan))
            case BatchRequest():
                load.took(request.operations)
                self._batch(pending, group, request)
            case TransferRequest():
                self._transfer(pending, group, request)

    def _served_by(self, group: Group, age_ms: int | None = None) -> Served:
        return Served(self._node, group.id.shard, group.term, age_ms)

    def _reject(self, pending: Pending, group: Group, failure: GroupFailure) -> None:
        """Try elsewhere if that makes sense, else say why not."""
        pending.sent = False
        if failure.reason in {"not_leader", "discarded"}:
            self._find_leader(pending)  # certainly not applied, so this try leaves no trace
        elif failure.reason == "unknown" and pending.lost():
            self._find_leader(pending)
        else:
            self._finish(pending, failure_of(failure), self._served_by(group))

    def _write(self, pending: Pending, group: Group, command: Command) -> None:
        def done(outcome: Sequence[WriteResult] | GroupFailure) -> None:
            if isinstance(outcome, GroupFailure):
                self._reject(pending, group, outcome)
            else:
                self._finish(pending, cast("Response", outcome[0]), self._served_by(group))

        pending.sent = True
        group.propose((command,), done)

    def _read(
        self,
        pending: Pending,
        group: Group,
        request: GetRequest | ScanRequest,
        look: Look,
    ) -> None:
        if request.consistency == "stale":
            self._read_stale(pending, group, request.max_age_ms, look)
            return

        def query(state: StateMachine | GroupFailure) -> None:
            if isinstance(state, GroupFailure):
                self._reject(pending, group, state)
            elif not pending.answered:
                self._finish(pending, look(state), self._served_by(group))

        group.read(query, pending.voucher)

    def _read_stale(
        self, pending: Pending, group: Group, max_age_ms: int | None, look: Look
    ) -> None:
        """Read the local replica, once it is known to be fresh enough if that was asked."""
        if max_age_ms is None:
            answer = group.read_local(look)
            self._finish(pending, answer, self._served_by(group, group.freshness.age_ms()))
            return

        def query(state: StateMachine | GroupFailure) -> None:
            if isinstance(state, GroupFailure):
                stale = Failure("too_stale", state.detail or "no leader", definite=True)
                self._finish(pending, stale, self._served_by(group))
            elif not pending.answered:
                age_ms = 0 if group.is_leader else group.freshness.age_ms()
                self._finish(pending, look(state), self._served_by(group, age_ms))

        group.read_stale(query, max_age_ms)

    def _batch(self, pending: Pending, group: Group, request: BatchRequest) -> None:
        """Put the writes into the log in as few entries as fit, and read beside them."""

        def done(outcome: BatchResult | GroupFailure) -> None:
            if isinstance(outcome, GroupFailure):
                self._reject(pending, group, outcome)
            else:
                self._finish(pending, outcome, self._served_by(group))

        pending.sent = True
        LocalBatch(request, group, done, pending.voucher).start()

    def _transfer(self, pending: Pending, group: Group, request: TransferRequest) -> None:
        target = request.target or self._directory.map.placement(request.shard).preferred_leader

        def done(failure: GroupFailure | None) -> None:
            if failure is not None:
                self._finish(pending, failure_of(failure), self._served_by(group))
                return
            self.placed(request.shard, request.target, request.for_s)
            handed_over = HandedOver(request.shard, group.leader, target)
            self._finish(pending, Facts.of(handed_over), self._served_by(group))

        if target == self._node:  # it leads already, as whoever asks twice is told
            done(None)
        else:
            group.transfer.begin(target, done)
