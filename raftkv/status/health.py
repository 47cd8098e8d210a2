"""How the cluster is, in one sentence and one of three words, from what its nodes have reported.

Pages, ``/v1/status`` and the command line all ask here, so that they never disagree. The facts are
those of ``GET /v1/status?scope=cluster`` (or of one node alone); whatever is missing in them, as an
engine of another version may leave things out, counts as not known and never as good.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

State = Literal["healthy", "degraded", "unavailable"]
Facts = Mapping[str, Any]

_NUMERALS = ("no", "one", "two", "three", "four", "five", "six")


class ShardHealth(NamedTuple):
    """One shard: who leads it, and how far its replicas are from losing their majority."""

    shard: Any
    leader: str | None
    replicas: tuple[str, ...]
    answering: tuple[str, ...]
    """Replicas that answered the question and hold the shard."""
    margin: int | None
    """How many more replicas may fail; negative: the quorum is lost; None: not known."""

    @property
    def needed(self) -> int:
        """A majority of the replicas."""
        return len(self.replicas) // 2 + 1

    @property
    def state(self) -> State:
        """``degraded`` if it serves with fewer replicas than it should have."""
        if self.leader is None or self.margin is None or self.margin < 0:
            return "unavailable"
        full = self.margin >= len(self.replicas) - self.needed
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


def rows(facts: Facts, name: str) -> list[Facts]:
    """Return the list called ``name`` of the facts, whatever an engine put there."""
    listed = facts.get(name)
    if not isinstance(listed, (list, tuple)):
        return []
    return [row for row in listed if isinstance(row, Mapping)]


def reachable(node: Facts) -> bool:
    """Whether a node answered, or at least its link is up."""
    return bool(node.get("reachable", node.get("connected", False)))


def silent_nodes(facts: Facts) -> list[str]:
    """Return the names of the nodes that do not answer."""
    return [str(row.get("name")) for row in rows(facts, "nodes") if not reachable(row)]


def shard_health(row: Facts, answering: Iterable[str]) -> ShardHealth:
    """Judge one shard's row, given the nodes that answer.

    A replica counts while its node answers and shows the shard. What the leader says of the
    replicas that it is in touch with counts too, if it is less: a node that reaches both may be
    their only connection.
    """
    listed = row.get("replicas")
    replicas = tuple(map(str, listed)) if isinstance(listed, (list, tuple)) else ()
    members = row.get("members")
    alive = set(answering)
    if isinstance(members, Mapping):
        alive &= set(members)
    there = tuple(name for name in replicas if name in alive)
    margin = len(there) - (len(replicas) // 2 + 1) if replicas else None
    said = row.get("margin")
    if margin is not None and isinstance(said, int) and not isinstance(said, bool):
        margin = min(margin, said)
    leader = row.get("leader")
    return ShardHealth(row.get("shard"), str(leader) if leader else None, replicas, there, margin)


def shards_of(facts: Facts) -> list[ShardHealth]:
    """Judge every shard of the facts."""
    answering = {str(row.get("name")) for row in rows(facts, "nodes") if reachable(row)}
    return [shard_health(row, answering) for row in rows(facts, "shards")]


def health_of(facts: Facts) -> Health:
    """Judge the cluster.

    How many more nodes may fail is exact. A shard loses its quorum when one replica more than its
    margin fails, and nobody chooses which nodes fail: the smallest margin of all shards is what
    is left, wherever the replicas are placed.
    """
    shards, silent = shards_of(facts), silent_nodes(facts)
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


def _reasons(facts: Facts) -> Iterable[str]:
    me, nodes = facts.get("node"), rows(facts, "nodes")
    if len(nodes) > 1 and all(reachable(node) == (node.get("name") == me) for node in nodes):
        yield (
            f"{me} hears no other node: either all of them are down or it is cut off; "
            "ask another one, too."
        )
    yield from _of_nodes(nodes)
    yield from _of_shards(rows(facts, "shards"))


def _of_nodes(nodes: Iterable[Facts]) -> Iterable[str]:
    for node in nodes:
        name = node.get("name")
        if isinstance(disagrees := node.get("disagrees"), str):
            yield f"{name} serves nothing: {disagrees}."
        if isinstance(refused := node.get("refused"), str):
            yield f"The link to {name} is refused: {refused}."
        if node.get("has_space") is False:
            yield f"The disk of {name} is full: it leads no writes."
        if node.get("stopping") is True:
            yield f"{name} is stopping."


def _of_shards(shards: Iterable[Facts]) -> Iterable[str]:
    for row in shards:
        shard = row.get("shard")
        if row.get("digests") == "differ" or row.get("digest_mismatch") is True:
            yield f"The replicas of shard {shard} differ: compare them before you trust either."
        members = row.get("members")
        for name, member in members.items() if isinstance(members, Mapping) else ():
            if isinstance(member, Mapping) and member.get("installing_snapshot") is True:
                yield f"{name} is installing a snapshot of shard {shard}."


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
