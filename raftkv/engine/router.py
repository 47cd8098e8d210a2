"""Finds the leader for every request, here or on another node, and sees it through.

A request is served by the group that holds its shard, if that leads here
(:mod:`raftkv.engine.local_service`), and is forwarded to the node that leads otherwise; a refusal
for want of leadership is tried again until the time is up (docs/design.md, "A write"). What is
finally said is definite only if it truly is (:mod:`raftkv.engine.requests`).

A forwarded call belongs to the link on which it was sent, and to the life of the node that sent it.
A peer can lose its link, or its process, and be back while its call is still held here. So a call
is answered over its own link or not at all, and a node numbers its calls from a random start, where
no earlier life of it did. Either would do; an answer to the wrong call acknowledges what is not
there.
"""

import asyncio
import operator
import os
from collections.abc import Callable
from functools import partial

import msgspec

from raftkv.core.operations import Refused, Txn, is_read_only
from raftkv.engine.connection import LinkLimits
from raftkv.engine.deadlines import Deadlines
from raftkv.engine.directory import Directory
from raftkv.engine.gather import BatchGather, ScanGather
from raftkv.engine.local_service import LocalService
from raftkv.engine.partitioning import shard_of
from raftkv.engine.peer_wire import CHANNEL_CALL, CHANNEL_REPLY, Links
from raftkv.engine.replica_table import ReplicaTable
from raftkv.engine.requests import RETRY_AFTER_MS, Answer, Pending, is_write, link_busy
from raftkv.engine.slow import SlowRequests
from raftkv.raft.clock import Clock
from raftkv.raft.group import Group
from raftkv.raft.reads import Voucher
from raftkv.rpc.calls import LinkCalls
from raftkv.rpc.messages import (
    BatchRequest,
    BatchResult,
    Call,
    Failure,
    GetRequest,
    Reply,
    Request,
    Response,
    ScanRequest,
    Served,
    TransferRequest,
    WriteRequest,
)
from raftkv.rpc.sizes import request_bytes, response_bytes, without_values

FOR_WANT_OF_ROOM = ("table_full", "share_full")
"""Reasons of a shard that remembers too many idempotency keys, of all or of this client."""

_MAY_REFUSE = frozenset({Failure, Refused, BatchResult})

HOPS_MAX = 3
"""A call that was forwarded this often is refused, so that stale beliefs cannot make it circle."""

ELSEWHERE = frozenset({"no_leader", "unavailable"})
"""Another node's definite refusals after which it makes sense to look for the leader again."""

CALL_LAG_S_MAX = 5.0
"""A call that may have been on its way for longer is refused.

Its time begins anew where it arrives, as no two nodes share a clock. So this bounds how late a copy
of a write can be: it is handed to a shard at most ``HOPS_MAX`` times this after its time was up,
that is 75 s after the client asked, with the longest time that a client may allow. Within 120 s its
idempotency key is not forgotten. It cannot wait anywhere else: forwarded calls do not wait for a
leader, and what a leader has queued is refused when it stops leading.
"""

REPLY_BYTES_MAX = 60 * 1024 * 1024
"""Largest answer to a forwarded call; a message on a link takes no more."""

NO_BOUND = 2**63

DETOUR_AFTER_S = 1.0
"""How long a replica looks for a leader itself before it asks another replica, which may reach one:
not while there is an election, and again after another one knew of none either."""

RETRY_S = 0.02
"""How long a request waits for a leader to be found before it looks again."""

SLOW_S = 0.5


class Router:
    """Routes the requests of this node's front end and those that other nodes forward.

    Args:
        replicas: the groups of this node.
        directory: which shard has which replicas.
        slow_s: a request that takes longer is logged.
        random_bytes: where the numbers of this life's calls begin is drawn from it.
        limits: what waits for a link, and from which size on.
    """

    def __init__(
        self,
        *,
        node: str,
        directory: Directory,
        replicas: ReplicaTable,
        links: Links,
        clock: Clock,
        loop: asyncio.AbstractEventLoop,
        slow_s: float = SLOW_S,
        random_bytes: Callable[[int], bytes] = os.urandom,
        limits: LinkLimits | None = None,
    ) -> None:
        self.directory = directory
        self.slow = SlowRequests(clock, slow_s)
        self.refused: dict[str, int] = dict.fromkeys(FOR_WANT_OF_ROOM, 0)
        """How often each failure was answered, by its code, and a name for want of room, by its
        reason, in batches too; those are there from the start, as an alert looks for a rise."""
        self.served: dict[str, int] = {}
        """How many requests of each kind this node has finished."""
        self.local = LocalService(
            node=node, directory=directory, finish=self._finish, find_leader=self._wait
        )
        self._node = node
        self._replicas = replicas.by_shard
        self._links = links
        self._clock = clock
        self._loop = loop
        self._deadlines = Deadlines(clock, loop, self._expired)
        self._awaiting_leader: dict[Pending, None] = {}
        self._retry_timer: asyncio.TimerHandle | None = None
        self._calls: dict[str, LinkCalls[Pending]] = {}  # by peer; those of its present link
        self._next_id = int.from_bytes(random_bytes(8)) >> 2  # two lives never meet in 62 bits
        self._limits = LinkLimits() if limits is None else limits
        self._hints: dict[int, str] = {}  # shard that nobody leads here -> who led it last
        self._detour_from: dict[int, float] = {}  # shard -> when to ask another replica again
        self._encode = msgspec.msgpack.Encoder().encode
        self._decode_call = msgspec.msgpack.Decoder(Call).decode
        self._decode_reply = msgspec.msgpack.Decoder(Reply).decode

    @property
    def in_flight(self) -> int:
        """Requests forwarded or waiting for a leader."""
        return sum(len(calls.asked) for calls in self._calls.values()) + len(self._awaiting_leader)

    # --- entrances ----------------------------------------------------------------------------

    def handle(self, call: Call, respond: Callable[[Reply], None]) -> None:
        """Take a call of this node's front end."""
        call_id = call.id

        def answer(response: Response, served: Served) -> None:
            self._count(call.request, response)
            respond(Reply(call_id, response, served, self.directory.epoch))

        self.route(call.request, call, answer)

    def on_call(self, peer: str, payload: bytes) -> None:
        """Take a call that another node forwards; its answer goes over the same link or nowhere."""
        call = self._decode_call(payload)
        call_id = call.id
        calls = self._calls_of(peer)

        def answer(response: Response, served: Served) -> None:
            if calls.is_lost:
                return  # who asked knows that this link is lost, and waits for nothing
            if response_bytes(response) <= self._limits.small_bytes:
                payload = self._encode(Reply(call_id, response, served, self.directory.epoch))
                if self._links.send_small(peer, CHANNEL_REPLY, payload):
                    return
            self._offer_answer(peer, call, response, served)

        lag_s = self._links.lag_s(peer)
        if lag_s > CALL_LAG_S_MAX:
            late = f"the call may have been on its way for {lag_s:.1f} s"
            answer(Failure("unavailable", late, definite=True), self._me(None))
            return
        voucher = None if call.term is None else Voucher(peer, call.term)
        self.route(call.request, call, answer, voucher)

    def _offer_answer(self, peer: str, call: Call, response: Response, served: Served) -> None:
        """Answer when the peer has room for it; reads are refused where too much waits for that."""

        def encode() -> bytes:
            payload = self._encode(Reply(call.id, response, served, self.directory.epoch))
            if len(payload) > REPLY_BYTES_MAX:
                large = Failure("too_large", "the answer is too large", not is_write(call.request))
                payload = self._encode(Reply(call.id, large, served, self.directory.epoch))
            return payload

        offer, size_bytes = self._links.offer, response_bytes(response)
        waiting_bytes_max = self._limits.answers_waiting_bytes_max
        if not offer(peer, CHANNEL_REPLY, size_bytes, encode, bytes_max=waiting_bytes_max):
            detail = f"too many answers wait for the link from {self._node}"
            if _only_reads(call.request):
                response = Failure("busy", detail, definite=True, retry_after_ms=RETRY_AFTER_MS)
            else:
                response = without_values(response, detail, RETRY_AFTER_MS)
            if response_bytes(response) > self._limits.small_bytes:  # what a transaction has read
                # It waits beyond the bound, and counts, so that reads are refused for longer.
                offer(peer, CHANNEL_REPLY, size_bytes, encode, bytes_max=NO_BOUND)
                return
            payload = encode()
            if not self._links.send_small(peer, CHANNEL_REPLY, payload):
                offer(peer, CHANNEL_REPLY, 0, lambda: payload, bytes_max=waiting_bytes_max)

    def on_reply(self, peer: str, payload: bytes) -> None:
        """Take the answer to a call that was forwarded to ``peer`` over the link that is up now.

        Those forwarded over earlier links were given up when these were lost.
        """
        reply = self._decode_reply(payload)
        pending = self._calls_of(peer).asked.pop(reply.id, None)
        if pending is None:
            return  # it ran out of time here
        response = reply.response
        if isinstance(response, Failure) and response.definite and response.code in ELSEWHERE:
            pending.sent = False
            self._detour_from[pending.shard] = self._clock.monotonic() + DETOUR_AFTER_S
            self._wait(pending)
            return
        if isinstance(response, Failure) and response.code == "unknown" and pending.lost():
            self._wait(pending)
            return
        if reply.served.shard is not None:
            leader = reply.served.node
            known = leader == peer or self._links.is_connected(leader)
            self._hints[reply.served.shard] = leader if known else peer
        self._finish(pending, response, reply.served)

    def on_disconnected(self, peer: str) -> None:
        """Hear that the link to ``peer`` is lost, before another one is up.

        Whatever was forwarded over it may or may not have arrived, and what came over it is not
        answered any more.
        """
        calls = self._calls.pop(peer, None)
        if calls is None:
            return
        for _, pending in calls.lose():
            if not pending.sent or pending.lost():
                self._wait(pending)
            else:
                detail = f"the link to {peer} broke before it answered"
                self._finish(pending, Failure("unknown", detail), self._me(pending.shard))

    def leader_changed(self) -> None:
        """Try again at once what waits for a leader."""
        if self._awaiting_leader:
            self._loop.call_soon(self._retry)

    def close(self) -> None:
        """Answer what still waits here; groups have answered what they had."""
        self._deadlines.close()
        if self._retry_timer is not None:
            self._retry_timer.cancel()
        asked = [call for calls in self._calls.values() for call in calls.asked.items()]
        forwarded = [pending for _, pending in sorted(asked, key=_number_of)]
        waiting = [*self._awaiting_leader, *forwarded]
        self._awaiting_leader.clear()
        for calls in self._calls.values():  # their links are up: others are still answered
            calls.asked.clear()
        for pending in waiting:
            pending.finish(pending.timed_out(), self._me(pending.shard))

    # --- routing ------------------------------------------------------------------------------

    def route(
        self, request: Request, call: Call, answer: Answer, voucher: Voucher | None = None
    ) -> None:
        """Send ``request``, all of a call or a part, where it belongs; ``answer`` runs once.

        That is within the time that the call leaves.
        """
        match request:
            case WriteRequest():
                shard = shard_of(self.directory.map, request.command)
                if isinstance(shard, Failure):
                    answer(shard, self._me(None))
                    return
            case GetRequest():
                shard = self.directory.map.shard_of(request.key)
            case ScanRequest(shard=None) | BatchRequest(shard=None):
                self._fan_out(request, call, answer)
                return
            case ScanRequest() | BatchRequest() | TransferRequest():
                if request.shard is None or request.shard not in self.directory.map.ring.shards:
                    missing = f"there is no shard {request.shard}"
                    answer(Failure("not_found", missing, definite=True), self._me(None))
                    return
                shard = request.shard
            case _:
                raise TypeError(f"not for the router: {type(request).__name__}")
        now = self._clock.monotonic()
        pending = Pending(
            request,
            shard,
            started=now,
            deadline=now + call.remaining_ms / 1000,
            hops=call.hops,
            answer=answer,
            request_id=call.request_id,
            voucher=voucher,
        )
        self._deadlines.add(pending)
        self._try(pending)

    def _fan_out(self, request: ScanRequest | BatchRequest, call: Call, answer: Answer) -> None:
        """Ask every shard for its part, and put the parts together."""
        if isinstance(request, BatchRequest):
            gather = BatchGather(request, partial(shard_of, self.directory.map), answer, self._node)
            for part, take in gather.parts():
                self.route(part, call, take)
            return
        deadline = self._clock.monotonic() + call.remaining_ms / 1000

        def ask(share: ScanRequest, take: Answer) -> None:
            left_ms = max(0, int((deadline - self._clock.monotonic()) * 1000))
            self.route(share, msgspec.structs.replace(call, remaining_ms=left_ms), take)

        ScanGather(request, self.directory.map.ring.shards, answer, self._node, ask).start()

    def _try(self, pending: Pending) -> None:
        """Serve here, forward, or wait until there is a leader."""
        if pending.answered:
            return
        replica = self._replicas.get(pending.shard)
        group = None if replica is None else replica.group
        if replica is not None and (replica.group.is_leader or _is_stale(pending.request)):
            self.local.serve(pending, replica)
            return
        target = self._target(pending, group)
        if target is not None and pending.hops < HOPS_MAX:
            self._forward(pending, target, None if group is None else group.term)
        elif pending.hops:
            # Another node waits for this; it may know better by now.
            self._finish(pending, _no_leader(pending.shard), self._me(pending.shard))
        else:
            self._wait(pending)

    def _target(self, pending: Pending, group: Group | None) -> str | None:
        """Return whom to ask: the leader as known here, or a replica that may know better."""
        is_connected = self._links.is_connected
        if group is not None:
            leader = group.leader
            if leader is not None and is_connected(leader):
                if self._detour_from:
                    self._detour_from.pop(pending.shard, None)
                return leader
            if pending.hops or not self._may_detour(pending.shard):
                return None
        replicas = [
            r for r in self.directory.map.placement(pending.shard).replicas if is_connected(r)
        ]
        if not replicas:
            return None
        hint = self._hints.pop(pending.shard, None)
        return hint if hint in replicas else replicas[self._next_id % len(replicas)]

    def _may_detour(self, shard: int) -> bool:
        """Whether to ask another replica, as this one has reached no leader for a while."""
        now = self._clock.monotonic()
        return now >= self._detour_from.setdefault(shard, now + DETOUR_AFTER_S)

    def _forward(self, pending: Pending, target: str, term: int | None) -> None:
        if request_bytes(pending.request) > self._limits.small_bytes:
            self._offer_call(pending, target)
            return
        remaining_ms = int((pending.deadline - self._clock.monotonic()) * 1000)
        if remaining_ms <= 0:
            return  # the deadline answers
        self._next_id += 1
        call = Call(
            self._next_id,
            remaining_ms,
            pending.request,
            self.directory.epoch,
            pending.hops + 1,
            pending.request_id,
            term,
        )
        if not self._links.send_small(target, CHANNEL_CALL, self._encode(call)):
            self._offer_call(pending, target)
            return
        pending.sent = True
        self._calls_of(target).asked[self._next_id] = pending

    def _offer_call(self, pending: Pending, target: str) -> None:
        """Forward when the link has room for it; until then nothing of it has left."""
        self._next_id += 1
        call_id = self._next_id
        asked = self._calls_of(target).asked

        def encode() -> bytes | None:
            pending.link = None
            remaining_ms = int((pending.deadline - self._clock.monotonic()) * 1000)
            if pending.answered or remaining_ms <= 0:
                asked.pop(call_id, None)
                return None
            pending.sent = True
            replica = self._replicas.get(pending.shard)
            return self._encode(
                Call(
                    call_id,
                    remaining_ms,
                    pending.request,
                    self.directory.epoch,
                    pending.hops + 1,
                    pending.request_id,
                    None if replica is None else replica.group.term,
                )
            )

        size_bytes = max(1, request_bytes(pending.request))
        asked[call_id] = pending
        pending.link = target
        if not self._links.offer(
            target, CHANNEL_CALL, size_bytes, encode, bytes_max=self._limits.calls_waiting_bytes_max
        ):
            del asked[call_id]
            pending.link = None
            if self._links.is_connected(target):
                self._finish(pending, link_busy(target), self._me(pending.shard))
            else:
                self._wait(pending)

    def _wait(self, pending: Pending) -> None:
        """Look again soon, or at once when a leader is found."""
        if pending.answered:
            return
        pending.link = None
        if pending.hops:
            self._finish(pending, _no_leader(pending.shard), self._me(pending.shard))
            return
        self._awaiting_leader[pending] = None
        if self._retry_timer is None:
            self._retry_timer = self._loop.call_later(RETRY_S, self._retry_by_timer)

    def _retry_by_timer(self) -> None:
        self._retry_timer = None
        self._retry()

    def _retry(self) -> None:
        waiting, self._awaiting_leader = list(self._awaiting_leader), {}
        now = self._clock.monotonic()
        for pending in waiting:
            if pending.deadline > now:  # else it is answered soon; this node was frozen, perhaps
                self._try(pending)

    def _expired(self, pending: Pending) -> None:
        self._awaiting_leader.pop(pending, None)
        timed_out, served = pending.timed_out(), self._me(pending.shard)
        pending.finish(timed_out, served)
        self._note_slow(pending, timed_out, served)

    def _finish(self, pending: Pending, response: Response, served: Served) -> None:
        self._deadlines.remove(pending)
        pending.finish(response, served)
        if self._clock.monotonic() - pending.started > self.slow.threshold_s:
            self._note_slow(pending, response, served)

    def _note_slow(self, pending: Pending, response: Response, served: Served) -> None:
        here = served.node == self._node
        replica = self._replicas.get(pending.shard) if here else None
        self.slow.note(pending, replica, response, served)

    def _calls_of(self, peer: str) -> LinkCalls[Pending]:
        """Return the calls of the link to ``peer`` that is up, or comes up next."""
        calls = self._calls.get(peer)
        if calls is None:
            calls = self._calls[peer] = LinkCalls()
        return calls

    def _me(self, shard: int | None) -> Served:
        return Served(self._node, shard)

    def _count(self, request: Request, response: Response) -> None:
        kind = type(request).__name__
        self.served[kind] = self.served.get(kind, 0) + 1
        if type(response) in _MAY_REFUSE:
            self._count_refused(response)

    def _count_refused(self, response: Response) -> None:
        if isinstance(response, Failure):
            self.refused[response.code] = self.refused.get(response.code, 0) + 1
            return
        results = response.results if isinstance(response, BatchResult) else (response,)
        for result in results:
            if isinstance(result, Refused) and result.reason in FOR_WANT_OF_ROOM:
                self.refused[result.reason] += 1


_number_of = operator.itemgetter(0)


def _is_stale(request: Request) -> bool:
    """Whether any replica may answer."""
    return isinstance(request, GetRequest | ScanRequest) and request.consistency == "stale"


def _no_leader(shard: int) -> Failure:
    detail = f"shard {shard} has no reachable leader"
    return Failure("no_leader", detail, definite=True, retry_after_ms=RETRY_AFTER_MS)


def _only_reads(request: Request) -> bool:
    """Whether it is a transaction that changes nothing, so that it can be refused for certain."""
    if not isinstance(request, WriteRequest):
        return False
    operation = request.command.operation
    return isinstance(operation, Txn) and is_read_only(operation)
