"""Objects that one client after the other uses, and histories of many clients using them.

Every operation takes effect at one moment between its begin and its end, so the histories are
linearizable; what clients see of that moment is all that is recorded.
"""

import functools
import heapq
import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import Any, Protocol

from raftkv.check.history import Event, Operation, pair

Answer = tuple[str, Any, dict[str, Any]]
"""Type, value and other members of the event that ends an operation."""


class Sequential(Protocol):
    """An object and the way in which clients use it."""

    def choose(self, random: Random, process: int, /) -> tuple[str, Any]:
        """Return what a client asks next."""
        ...

    def apply(self, f: str, value: Any, process: int, /) -> Answer:
        """Take effect."""
        ...


@dataclass
class RegisterObject:
    """A register with revisions; ``tell`` says whether writes and reads tell them."""

    tell: bool = True
    entry: tuple[Any, int] | None = None
    revision: int = 0
    written: int = 0

    def choose(self, random: Random, _process: int) -> tuple[str, Any]:
        """Write values that are all different."""
        self.written += 1
        # What a client may know: a revision that there was, or is.
        guess = self.entry[1] if self.entry and random.random() < 0.8 else None
        return random.choice(
            [
                ("read", None),
                ("read", None),
                ("write", f"v{self.written}"),
                ("cas", {"expected_revision": guess, "value": f"v{self.written}"}),
                ("delete", None if guess is None else {"expected_revision": guess}),
            ]
        )

    def apply(self, f: str, value: Any, _process: int) -> Answer:
        """Behave as one key of raftkv."""
        found = None if self.entry is None else self.entry[1]
        conditional = isinstance(value, dict)
        if f == "read":
            content = None if self.entry is None else self.entry[0]
            return "ok", content, {"revision": found} if self.tell else {}
        if f == "delete" and found is None:
            return "ok", None, {"deleted": False, "revision": None}
        if conditional and value["expected_revision"] != found:
            return "fail", None, {"observed_revision": found}
        self.revision += 2
        told = {"revision": self.revision} if self.tell else {}
        if f == "delete":
            self.entry = None
            return "ok", None, {"deleted": True, **told}
        self.entry = (value["value"] if conditional else value, self.revision)
        return "ok", value, told


@dataclass
class SetObject:
    """A set that grows; now and then something is added again."""

    elements: set[int] = field(default_factory=set)

    def choose(self, random: Random, _process: int) -> tuple[str, Any]:
        """Add as often as read."""
        return random.choice([("read", None), ("add", random.randrange(60))])

    def apply(self, f: str, value: Any, _process: int) -> Answer:
        """Add, or return all in no order."""
        if f == "add":
            self.elements.add(value)
            return "ok", value, {}
        return "ok", list(self.elements), {}


@dataclass
class AppendObject:
    """A list; now and then something is appended again."""

    elements: list[int] = field(default_factory=list)

    def choose(self, random: Random, _process: int) -> tuple[str, Any]:
        """Append as often as read."""
        return random.choice([("read", None), ("append", random.randrange(200))])

    def apply(self, f: str, value: Any, _process: int) -> Answer:
        """Append, or return all in order."""
        if f == "append":
            self.elements.append(value)
            return "ok", value, {}
        return "ok", list(self.elements) or None, {}


@dataclass
class BankObject:
    """A bank; ``tell`` says whether answers tell revisions."""

    tell: bool = False
    balances: dict[str, int] = field(default_factory=dict)
    revision: int = 0

    def choose(self, random: Random, _process: int) -> tuple[str, Any]:
        """Transfer more often than read; the first operation opens the accounts."""
        if not self.balances:
            return "init", dict.fromkeys("abcd", 10)
        source, target = random.sample("abcd", 2)
        order = {"from": source, "to": target, "amount": random.randrange(1, 8)}
        return random.choice([("read", None), ("transfer", order), ("transfer", order)])

    def apply(self, f: str, value: Any, _process: int) -> Answer:
        """Refuse what would overdraw."""
        if f == "read":
            return "ok", dict(self.balances), self._told()
        if f == "transfer":
            if self.balances[value["from"]] < value["amount"]:
                return "fail", None, {}
            self.balances[value["from"]] -= value["amount"]
            self.balances[value["to"]] += value["amount"]
        else:
            self.balances = dict(value)
        self.revision += 1
        return "ok", value, self._told()

    def _told(self) -> dict[str, Any]:
        return {"revision": self.revision} if self.tell else {}


@dataclass
class LockObject:
    """A lock that its holder gives back."""

    holder: int | None = None

    def choose(self, random: Random, process: int) -> tuple[str, Any]:
        """Release what one has, now and then also what one has not."""
        likely = "release" if self.holder == process else "acquire"
        return (likely if random.random() < 0.9 else random.choice(["acquire", "release"])), None

    def apply(self, f: str, _value: Any, process: int) -> Answer:
        """One holder at a time."""
        expected = None if f == "acquire" else process
        if self.holder != expected:
            return "fail", None, {}
        self.holder = process if f == "acquire" else None
        return "ok", None, {}


@dataclass
class CasRegisterObject:
    """A register of few values, which come again."""

    value: int | None = None

    def choose(self, random: Random, _process: int) -> tuple[str, Any]:
        """Write, compare and set, read."""
        old, new = random.randrange(5), random.randrange(5)
        return random.choice([("read", None), ("write", new), ("cas", [old, new])])

    def apply(self, f: str, value: Any, _process: int) -> Answer:
        """Behave as etcd's key in Jepsen's test."""
        if f == "read":
            return "ok", self.value, {}
        if f == "cas" and value[0] != self.value:
            return "fail", value, {}
        self.value = value[1] if f == "cas" else value
        return "ok", value, {}


@dataclass
class KeyValueObject:
    """Text that is replaced or made longer."""

    text: str = ""

    def choose(self, random: Random, _process: int) -> tuple[str, Any]:
        """Put seldom."""
        piece = random.choice("xyz")
        return random.choice(
            [("get", None), ("get", None), ("append", piece), ("append", piece), ("put", piece)]
        )

    def apply(self, f: str, value: Any, _process: int) -> Answer:
        """Replace or append."""
        if f == "get":
            return "ok", self.text, {}
        self.text = self.text + value if f == "append" else value
        return "ok", value, {}


OBJECTS: dict[str, Callable[[], Sequential]] = {
    "register": RegisterObject,
    "register without revisions": lambda: RegisterObject(tell=False),
    "set": SetObject,
    "append": AppendObject,
    "bank": BankObject,
    "bank with revisions": lambda: BankObject(tell=True),
    "lock": LockObject,
    "cas-register": CasRegisterObject,
    "kv": KeyValueObject,
}
"""Name, beginning with that of the model, and how to make one."""


def linearizable_history(
    kind: str, random: Random, *, operations: int, clients: int = 5, unknown: float = 0.1
) -> list[Operation]:
    """Return a history of one key, in which a share of the operations has an unknown outcome.

    Of those, some never take effect, and some long after the client has given up. The first
    operation is over before the second begins.
    """
    run = _Run(OBJECTS[kind](), random, operations, unknown)
    run.at(0, lambda: run.begin(0))
    for process in range(1, clients):
        run.at(10, functools.partial(run.begin, process))
    return pair(run.events())


class _Run:
    """Clients and an object in simulated time, in seconds."""

    def __init__(self, target: Sequential, random: Random, operations: int, unknown: float) -> None:
        self._target = target
        self._random = random
        self._left = operations
        self._unknown = unknown
        self._now_s = 0.0
        self._agenda: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._events: list[Event] = []

    def events(self) -> list[Event]:
        """Let all happen, and return what was recorded."""
        while self._agenda:
            self._now_s, _, happen = heapq.heappop(self._agenda)
            happen()
        return self._events

    def at(self, delay_s: float, what: Callable[[], None]) -> None:
        """Plan something."""
        heapq.heappush(self._agenda, (self._now_s + delay_s, next(self._order), what))

    def begin(self, process: int) -> None:
        """Begin an operation, if there are any left."""
        if self._left == 0:
            return
        self._left -= 1
        f, value = self._target.choose(self._random, process)
        self._record(process, f, ("invoke", value, {}))
        took_s = self._random.uniform(0.5, 3)
        answers: list[Answer] = []

        def happen() -> None:
            answers.append(self._target.apply(f, value, process))

        if process > 0 and self._random.random() < self._unknown:
            if self._random.random() < 0.5:
                self.at(self._random.uniform(0, 30), happen)
            self.at(took_s, lambda: self._end(process, f, ("info", None, {})))
        else:
            self.at(self._random.uniform(0, took_s), happen)
            self.at(took_s, lambda: self._end(process, f, answers[0]))

    def _end(self, process: int, f: str, answer: Answer) -> None:
        self._record(process, f, answer)
        self.at(self._random.uniform(0, 1), lambda: self.begin(process))

    def _record(self, process: int, f: str, said: Answer) -> None:
        kind, value, fields = said
        self._events.append(Event(process, kind, f, "k", value, int(self._now_s * 1e9), fields))
