"""How the cluster is, in one sentence and one of three words, from what its nodes have reported.

Pages, ``/v1/status`` and the command line all ask here, so that they never disagree. What is not
told, as an engine of another version may leave things out, counts as not known and never as good.
"""

from collections.abc import Iterable, Sequence
from typing import Any, Literal, NamedTuple

from raftkv.status.facts import ClusterFacts, NodeSummary, ShardFacts

State = Literal["healthy", "degraded", "unavailable"]

_NUMERALS = ("no", "one", "two", "three", "four", "five", "six")


class ShardHealth(NamedTuple):
    """One shard: who leads it, and how far its replicas are from losing their majority."""

    shard: int
    leader: str | None
    replicas: tuple[str, ...]
    answering: tuple[str, ...]
    """Replicas that answered the question and hold the shard."""
    margin: int | None
    """How many more replicas may fail; negative: the quorum is lost; None: not known."""

    @property
    def state(self) -> State:
        """``degraded`` if it serves with fewer replicas than it should have."""
        if self.leader is None or self.margin is None or self.margin < 0:
            return "unavailable"
        full = self.margin >= quorum_margin(len(self.replicas), len(self.replicas))
        return "healthy" if full else "degraded"


class Health(NamedTuple):
    """The verdict over all shards and nodes."""

    state: State
    sentence: str
    """What an operator has to know first."""
    more_may_fail: int | None
    """So many more nodes may fail, whichever they are, before a shard loses its quorum."""
    reasons: tuple[str, ...]
    """What else is not as it should be, one sentence each."""

    def as_facts(self) -> dict[str, Any]:
        """Return it as JSON for ``/v1/status``."""
        return {**self._asdict(), "reasons": list(self.reasons)}


def quorum_margin(replicas: int, there: int) -> int:
    """How many more of a shard's replicas may fail while ``there`` of them are; -1: no quorum."""
    return max(-1, there - (replicas // 2 + 1))


def shard_health(row: ShardFacts, answering: Iterable[str]) -> ShardHealth:
    """Judge one shard, given the nodes that answer.

    A replica counts while its node answers and shows the shard. What the leader says of the
    replicas that it is in touch with counts too, if it is less: a node that reaches both may be
    their only connection.
    """
    alive = set(answering)
    if row.members is not None:
        alive &= set(row.members)
    there = tuple(name for name in row.replicas if name in alive)
    margin = quorum_margin(len(row.replicas), len(there)) if row.replicas else None
    if margin is not None and row.margin is not None:
        margin = min(margin, row.margin)
    return ShardHealth(row.shard, row.leader, row.replicas, there, margin)


def health_of(facts: ClusterFacts) -> Health:
    """Judge the cluster.

    How many more nodes may fail is exact. A shard loses its quorum when one replica more than its
    margin fails, and nobody chooses which nodes fail: the smallest margin of all shards is what
    is left, wherever the replicas are placed.
    """
    shards = [shard_health(row, facts.answering) for row in facts.shards]
    silent = facts.silent
    reasons = tuple(_reasons(facts))
    if not shards:
        return Health("unavailable", "No shard is known here.", None, reasons)
    margins = [shard.margin for shard in shards]
    least = min((m for m in margins if m is not None), default=None)
    more = None if least is None or None in margins else max(least, 0)
    if any(shard.state == "unavailable" for shard in shards):
        return Health("unavailable", _outage(shards, silent), more, reasons)
    sentence = _all(len(shards), "shard") + " a leader and a quorum"
    if silent:
        sentence += f", but {_does_not_answer(silent)}"
    sentence += f"; {_may_fail(more or 0, more_than=bool(silent))}."
    degraded = silent or reasons or any(shard.state != "healthy" for shard in shards)
    return Health("degraded" if degraded else "healthy", sentence, more, reasons)


def _outage(shards: Sequence[ShardHealth], silent: Sequence[str]) -> str:
    lost = [s for s in shards if s.margin is not None and s.margin < 0]
    leaderless = [s for s in shards if s not in lost and s.state == "unavailable"]
    parts = []
    if lost:
        parts.append(_lacks(lost, len(shards), "quorum"))
    if leaderless:
        parts.append(_lacks(leaderless, len(shards), "leader"))
    one = len(lost) + len(leaderless) == 1
    sentence = f"{' and '.join(parts)}: {'its' if one else 'their'} keys cannot be read or written"
    if silent:
        sentence += f"; {_does_not_answer(silent)}"
    return sentence[0].upper() + sentence[1:] + "."


def _lacks(lacking: Sequence[ShardHealth], total: int, what: str) -> str:
    if len(lacking) == 1:
        return f"shard {lacking[0].shard} has no {what}"
    if len(lacking) == total:
        return f"all {total} shards have no {what}"
    names = ", ".join(str(shard.shard) for shard in lacking)
    return f"{len(lacking)} of {total} shards have no {what} ({names})"


def _reasons(facts: ClusterFacts) -> Iterable[str]:
    me, nodes = facts.node, facts.nodes
    if len(nodes) > 1 and all(row.reachable == (row.name == me) for row in nodes):
        yield (
            f"{me} hears no other node: either all of them are down or it is cut off; "
            "ask another one, too."
        )
    yield from _of_nodes(nodes)
    yield from _of_shards(facts.shards)


def _of_nodes(nodes: Iterable[NodeSummary]) -> Iterable[str]:
    for row in nodes:
        if row.disagrees is not None:
            yield f"{row.name} serves nothing: {row.disagrees}."
        if row.refused is not None:
            yield f"The link to {row.name} is refused: {row.refused}."
        if row.has_space is False:
            yield f"The disk of {row.name} is full: it leads no writes."
        if row.disk_silent_s:
            yield f"The disk of {row.name} has not answered for {row.disk_silent_s:.0f} s."
        if row.stopping:
            yield f"{row.name} is stopping."


def _of_shards(shards: Iterable[ShardFacts]) -> Iterable[str]:
    for row in shards:
        if row.digests == "differ" or row.digest_mismatch is not None:
            yield f"The replicas of shard {row.shard} differ: compare them before you trust either."
        for name, member in (row.members or {}).items():
            if member.installing_snapshot:
                yield f"{name} is installing a snapshot of shard {row.shard}."


def _all(count: int, what: str) -> str:
    return f"The only {what} has" if count == 1 else f"All {count} {what}s have"


def _does_not_answer(names: Sequence[str]) -> str:
    if len(names) == 1:
        return f"{names[0]} does not answer"
    return f"{', '.join(names[:-1])} and {names[-1]} do not answer"


def _may_fail(count: int, *, more_than: bool) -> str:
    if count == 0:
        return "no other node may fail" if more_than else "no node may fail"
    numeral = _NUMERALS[count] if count < len(_NUMERALS) else str(count)
    return f"{numeral} more node{'s' if count > 1 else ''} may fail"
