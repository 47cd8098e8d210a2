"""Several nodes are asked how the cluster is, and the one that knows most is believed.

A node that is cut off tells of a cluster that is down, and who answers first is luck: it must
not decide what an operator reads.
"""

import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, NamedTuple

import msgspec

from raftkv.client import Client, RaftkvError, ServerError
from raftkv.core.visible import visible_facts
from raftkv.status.facts import ClusterFacts, NodeFacts, alone, read

ASK_S = 2.5
"""For so long each of several nodes is asked: a frozen one must not keep an operator waiting, and
one that answers needs a second at most."""

Scope = Literal["local", "cluster"]


class NodeAnswer(NamedTuple):
    """What one endpoint said, or why it said nothing."""

    endpoint: str
    document: Mapping[str, Any]
    """What it said, as it came."""
    facts: ClusterFacts
    """The same as far as this version knows it, fit for a terminal."""
    error: RaftkvError | None


def ask_each(clients: Sequence[Client], scope: Scope) -> list[NodeAnswer]:
    """Ask all at the same time.

    Args:
        clients: One for each endpoint.
        scope: As for :meth:`raftkv.client.Client.status`.
    """
    if len(clients) == 1:
        return [_ask(clients[0], scope, None)]
    with ThreadPoolExecutor(len(clients)) as threads:
        return list(threads.map(lambda c: _ask(c, scope, min(ASK_S, c.timeout_s)), clients))


def _ask(client: Client, scope: Scope, timeout_s: float | None) -> NodeAnswer:
    endpoint = client.endpoints[0]
    try:
        document = client.status(scope, timeout_s=timeout_s)
        return NodeAnswer(endpoint, document, _read(document, scope, endpoint), None)
    except RaftkvError as error:
        return NodeAnswer(endpoint, {}, ClusterFacts(), error)


def _read(document: Mapping[str, Any], scope: Scope, endpoint: str) -> ClusterFacts:
    told = visible_facts(document)
    try:
        return alone(read(told, NodeFacts)) if scope == "local" else read(told, ClusterFacts)
    except msgspec.ValidationError as error:
        raise ServerError(
            f"{endpoint}: it tells what this version cannot read ({error}); --json shows it"
        ) from error


def best_informed(told: Sequence[NodeAnswer]) -> NodeAnswer | None:
    """The view in which most nodes answer; of equal ones that with the newest map, then terms.

    Terms grow with elections, so the side of a partition that elects has the greater ones.
    """
    answered = [one for one in told if one.error is None]
    return max(answered, key=_knowledge, default=None)


_ERRNO = re.compile(r"^\[Errno [0-9]+\] ")


def _knowledge(told: NodeAnswer) -> tuple[int, int, int, int]:
    facts = told.facts
    return (
        len(facts.answering),
        facts.map_epoch or 0,
        sum(row.term or 0 for row in facts.shards),
        sum(row.leader is not None for row in facts.shards),
    )


def remarks(told: Sequence[NodeAnswer], best: NodeAnswer) -> list[str]:
    """Whatever the other endpoints show that the best view does not: one sentence each."""
    found = []
    unheard = set(best.facts.silent)
    for one in told:
        node = one.facts.node
        if one.error is not None:
            # Without advice: other nodes answer, so a cluster is there.
            why = str(one.error.args[0]).rpartition(f"{one.endpoint}: ")[2]
            found.append(f"{one.endpoint} does not tell: {_ERRNO.sub('', why)}")
        elif one.facts.cluster != best.facts.cluster:
            found.append(f"{one.endpoint} is of another cluster: {one.facts.cluster}.")
        elif node in unheard:
            found.append(f"{node} answers at {one.endpoint}, but {_cut_off(one, best)}.")
    return found


def _cut_off(one: NodeAnswer, best: NodeAnswer) -> str:
    us, them = best.facts.node, one.facts.node
    count = len(one.facts.answering)
    if count == len(best.facts.answering):
        return f"{us} does not reach it: the two are parted, and hear as many nodes each"
    others = "no other node" if count == 1 else f"only {count - 1} of the other nodes"
    return f"{us} does not reach it: {them} is cut off, and hears {others}"
