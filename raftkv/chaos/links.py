"""The links between nodes, as seen from the run: the other end of :mod:`raftkv.chaos.proxy`."""

import contextlib
import json
import subprocess
import threading
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from raftkv.chaos.errors import ChaosError
from raftkv.chaos.proxy import Rule, Stats
from raftkv.interpreter import PYTHON_M

Pair = tuple[str, str]
"""A direction: from this node to that one."""

STOP_S = 5.0


@dataclass(frozen=True, slots=True)
class Link:
    """One pair of nodes: the dialer connects to ``listen``, which leads ``to`` the acceptor."""

    dialer: str
    acceptor: str
    listen: int
    to: int


class Links:
    """A proxy process and its commands. The lock guards the pipe: one command at a time."""

    def __init__(self, links: Sequence[Link], seed: int) -> None:
        self._lock = threading.Lock()
        self._process = subprocess.Popen(  # noqa: S603 -- our own module
            [*PYTHON_M, "raftkv.chaos.proxy", str(seed)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            process_group=0,
        )
        self._ask({"do": "open", "links": [asdict(link) for link in links]})
        self.pairs = tuple(
            pair
            for link in links
            for pair in ((link.dialer, link.acceptor), (link.acceptor, link.dialer))
        )
        self._rules: dict[Pair, list[Rule]] = {pair: [] for pair in self.pairs}

    def add(self, pairs: Sequence[Pair], rule: Rule) -> None:
        """Have one more rule on these directions, beside those that they have."""
        for pair in pairs:
            self._rules[pair].append(rule)
            self._send(pair)

    def remove(self, pairs: Sequence[Pair], rule: Rule) -> None:
        """Take a rule away again."""
        for pair in pairs:
            self._rules[pair].remove(rule)
            self._send(pair)

    def _send(self, pair: Pair) -> None:
        rule = asdict(merged(self._rules[pair]))
        self._ask({"do": "rule", "from": pair[0], "to": pair[1], "rule": rule})

    def stats(self) -> Mapping[Pair, Stats]:
        """What each direction has done so far."""
        rows = self._ask({"do": "stats"})
        return {(row.pop("from"), row.pop("to")): Stats(**row) for row in rows}

    def close(self) -> None:
        """End the process."""
        stdin, stdout = self._process.stdin, self._process.stdout
        if stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                stdin.close()
        try:
            self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if stdout is not None:
            stdout.close()

    def _ask(self, command: Mapping[str, Any]) -> Any:
        stdin, stdout = self._process.stdin, self._process.stdout
        if stdin is None or stdout is None:
            raise ChaosError("the proxy between the nodes has no pipes")
        with self._lock:
            with contextlib.suppress(BrokenPipeError):
                stdin.write(json.dumps(command).encode() + b"\n")
                stdin.flush()
            answer = stdout.readline()
        if not answer:
            raise ChaosError("the proxy between the nodes has died; its trace is above")
        return json.loads(answer)


def merged(rules: Sequence[Rule]) -> Rule:
    """The rule that does all that these do: the worst of each."""
    every = (Rule(), *rules)
    return Rule(
        blocked=any(rule.blocked for rule in every),
        delay_ms=max(rule.delay_ms for rule in every),
        stall_share=max(rule.stall_share for rule in every),
        stall_ms=max(rule.stall_ms for rule in every),
        reset_share=max(rule.reset_share for rule in every),
    )
