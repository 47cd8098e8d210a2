"""Several nodes are asked how the cluster is, and the one that knows most is believed.

A node that is cut off tells of a cluster that is down, and who answers first is luck: it must
not decide what an operator reads.
"""

import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, NamedTuple

from raftkv.client import Client, RaftkvError
from raftkv.status.health import reachable, rows, silent_nodes

ASK_S = 2.5
"""For so long each of several nodes is asked: a frozen one must not keep an operator waiting, and
one that answers needs a second at most."""

Facts = Mapping[str, Any]
Scope = Literal["local", "cluster"]


class Testimony(NamedTuple):
    """What one endpoint said, or why it said nothing."""

    endpoint: str
    facts: Facts
    error: RaftkvError | None


def ask_each(clients: Sequence[Client], scope: Scope) -> list[Testimony]:
    """Ask all at the same time.

    Args:
        clients: One for each endpoint.
        scope: As for :meth:`raftkv.client.Client.status`.
    """
    if len(clients) == 1:
        return [_ask(clients[0], scope, None)]
    with ThreadPoolExecutor(len(clients)) as threads:
        return list(threads.map(lambda c: _ask(c, scope, min(ASK_S, c.timeout_s)), clients))


def _ask(client: Client, scope: Scope, timeout_s: float | None) -> Testimony:
    endpoint = client.endpoints[0]
    try:
        return Testimony(endpoint, client.status(scope, timeout_s=timeout_s), None)
    except RaftkvError as error:
        return Testimony(endpoint, {}, error)


def best_informed(told: Sequence[Testimony]) -> Testimony | None:
    """The view in which most nodes answer; of equal ones that with the newest map, then terms.

    Terms grow with elections, so the side of a partition that elects has the greater ones.
    """
    answered = [one for one in told if one.error is None]
    return max(answered, key=_knowledge, default=None)


_ERRNO = re.compile(r"^\[Errno [0-9]+\] ")


def _knowledge(told: Testimony) -> tuple[int, int, int, int]:
    shards = rows(told.facts, "shards")
    return (
        _answering(told.facts),
        _whole(told.facts.get("map_epoch")),
        sum(_whole(row.get("term")) for row in shards),
        sum(bool(row.get("leader")) for row in shards),
    )


def remarks(told: Sequence[Testimony], best: Testimony) -> list[str]:
    """Whatever the other endpoints show that the best view does not: one sentence each."""
    found = []
    unheard = set(silent_nodes(best.facts))
    for one in told:
        node = one.facts.get("node")
        if one.error is not None:
            # Without advice: other nodes answer, so a cluster is there.
            why = str(one.error.args[0]).rpartition(f"{one.endpoint}: ")[2]
            found.append(f"{one.endpoint} does not tell: {_ERRNO.sub('', why)}")
        elif one.facts.get("cluster") != best.facts.get("cluster"):
            found.append(f"{one.endpoint} is of another cluster: {one.facts.get('cluster')}.")
        elif node in unheard:
            found.append(f"{node} answers at {one.endpoint}, but {_cut_off(one, best)}.")
    return found


def _cut_off(one: Testimony, best: Testimony) -> str:
    us, them = best.facts.get("node"), one.facts.get("node")
    count = _answering(one.facts)
    if count == _answering(best.facts):
        return f"{us} does not reach it: the two are parted, and hear as many nodes each"
    others = "no other node" if count == 1 else f"only {count - 1} of the other nodes"
    return f"{us} does not reach it: {them} is cut off, and hears {others}"


def _answering(facts: Facts) -> int:
    return sum(reachable(row) for row in rows(facts, "nodes"))


def _whole(value: object) -> int:
    return value if isinstance(value, int) else 0
