"""What all nodes together tell operators: each is asked, and whoever does not answer is named."""

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import NamedTuple

import msgspec

from raftkv.engine.directory import Directory
from raftkv.engine.peer_wire import CHANNEL_STATUS, Links
from raftkv.engine.status import LocalStatus
from raftkv.raft.clock import Clock
from raftkv.rpc.framing import DECODE_ERRORS
from raftkv.rpc.messages import Facts, Failure
from raftkv.rpc.sizes import SMALL_BYTES
from raftkv.status.facts import ClusterFacts, KeyFacts, NodeFacts, RingShape
from raftkv.status.merging import events_of, nodes_of, shards_of

ASK_TIMEOUT_S = 0.7
"""Pages must show within a second what the nodes that answer know."""

QUESTIONS_MAX = 4
"""So many questions are under way at once; who asks beyond that shares the answer to the newest.

The facts of a node with many shards are megabytes, which every question fetches from every node.
"""

Answered = Callable[[Facts | Failure], None]

_decode_message = msgspec.msgpack.Decoder(tuple[int, msgspec.Raw]).decode
_decode_facts = msgspec.msgpack.Decoder(NodeFacts | None).decode

_logger = logging.getLogger(__name__)


class ClusterStatus:
    """Asks every node for its facts and makes one answer of them.

    Questions are numbered from 1 in every life: they are answered at once, so that an answer is
    lost with the link of its question, and never reaches another life.
    """

    def __init__(
        self,
        *,
        node: str,
        directory: Directory,
        local: LocalStatus,
        links: Links,
        clock: Clock,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self._node = node
        self._directory = directory
        self._local = local
        self._links = links
        self._clock = clock
        self._loop = loop
        self._number = 0
        self._questions: dict[int, _Question] = {}

    def ask(self, done: Answered) -> None:
        """Ask every connected node; answer when all have, or in time with those that have."""
        self._ask(_Reader(lambda cluster: cluster, done))

    def explain(self, key: bytes, done: Answered) -> None:
        """Tell where ``key`` lives and why, and how all nodes see its shard."""
        self._ask(_Reader(lambda cluster: self._explained(key, cluster), done))

    def _explained(self, key: bytes, cluster: ClusterFacts) -> KeyFacts:
        facts = self._local.explain(key)
        state = next(row for row in cluster.shards if row.shard == facts.shard)
        return msgspec.structs.replace(
            facts,
            # Who leads is what all nodes say together, as on every other page.
            leader=state.leader,
            leader_since_us=state.leader_since_us,
            no_leader_since_us=state.no_leader_since_us,
            term=state.term,
            state=state,
            not_answering=cluster.not_answering,
        )

    def _ask(self, reader: "_Reader") -> None:
        if len(self._questions) >= QUESTIONS_MAX:
            next(reversed(self._questions.values())).readers.append(reader)
            return
        self._number += 1
        number = self._number
        question = _Question(self._links.connected, lambda: self._answer(number))
        question.readers.append(reader)
        self._questions[number] = question
        for peer in sorted(question.missing):
            self._links.send(peer, CHANNEL_STATUS, msgspec.msgpack.encode((number, None)))
        if question.missing:
            question.timer = self._loop.call_later(ASK_TIMEOUT_S, question.finish)
        else:
            question.finish()

    def on_message(self, peer: str, payload: bytes) -> None:
        """Take a question of another node, or its answer to ours.

        What does not fit is no reason to do without its link: it counts as no answer.
        """
        try:
            number, facts = _decode_message(payload)
        except DECODE_ERRORS as error:
            _logger.warning("the status message of %s cannot be read: %s", peer, error)
            return
        question = self._questions.get(number)
        try:
            told = _decode_facts(facts)
        except DECODE_ERRORS as error:
            _logger.warning("what %s says of itself does not fit: %s", peer, error)
            if question is not None:
                question.done_with(peer)
            return
        if told is None:
            self._tell(peer, number)
        elif question is not None:
            question.take(peer, told)

    def _tell(self, peer: str, number: int) -> None:
        try:
            answer = msgspec.msgpack.encode((number, self._local.facts()))
        except Exception:
            _logger.exception("the facts that %s asks for cannot be told", peer)
        else:
            self._links.send(peer, CHANNEL_STATUS, answer, bulk=len(answer) > SMALL_BYTES)

    def _answer(self, number: int) -> None:
        """Answer; a bug met on the way is the readers', and no reason to stop the node."""
        question = self._questions.pop(number)
        cluster: ClusterFacts | None = None
        try:
            cluster = self._merged({self._node: self._local.facts(), **question.answers})
        except Exception:
            _logger.exception("what the nodes say cannot be put together")
        for reader in question.readers:
            reader.done(_told(reader, cluster))

    # --- putting the answers together ---------------------------------------------------------

    def _merged(self, answers: Mapping[str, NodeFacts]) -> ClusterFacts:
        ring = self._directory.map.ring
        return ClusterFacts(
            node=self._node,
            cluster=self._directory.map.cluster_id,
            map_epoch=self._directory.epoch,
            as_of_us=self._clock.time_us(),
            not_answering=tuple(name for name in self._directory.map.nodes if name not in answers),
            ring=RingShape(ring.kind, ring.shards, ring.vnodes),
            nodes=nodes_of(answers[self._node].nodes, answers),
            shards=shards_of(self._directory.map.groups, answers),
            events=events_of(answers),
        )


def _told(reader: "_Reader", cluster: ClusterFacts | None) -> Facts | Failure:
    bug = Failure("internal", "a bug in the engine; its log has the trace")
    if cluster is None:
        return bug
    try:
        return Facts.of(reader.make(cluster))
    except Exception:
        _logger.exception("a question about the cluster cannot be answered")
        return bug


class _Reader(NamedTuple):
    """Who waits for an answer, and what of the cluster's facts is wanted."""

    make: Callable[[ClusterFacts], ClusterFacts | KeyFacts]
    done: Answered


class _Question:
    """Facts of several nodes, asked at once."""

    def __init__(self, peers: frozenset[str], complete: Callable[[], None]) -> None:
        self.missing = set(peers)
        self.answers: dict[str, NodeFacts] = {}
        self.readers: list[_Reader] = []
        self.timer: asyncio.TimerHandle | None = None
        self._complete = complete
        self._finished = False

    def take(self, peer: str, facts: NodeFacts) -> None:
        """Take one node's answer."""
        self.answers[peer] = facts
        self.done_with(peer)

    def done_with(self, peer: str) -> None:
        """Wait no longer for one node."""
        self.missing.discard(peer)
        if not self.missing:
            self.finish()

    def finish(self) -> None:
        """Go on with what there is."""
        if not self._finished:
            self._finished = True
            if self.timer is not None:
                self.timer.cancel()
            self._complete()
