"""Workloads: what the clients do, each judged by one model of :mod:`raftkv.check`."""

from collections.abc import Callable
from random import Random
from typing import Protocol

from raftkv.chaos.operation import Operation
from raftkv.chaos.workloads.append import AppendWorkload
from raftkv.chaos.workloads.bank import BankWorkload
from raftkv.chaos.workloads.lock import LockWorkload
from raftkv.chaos.workloads.register import RegisterWorkload
from raftkv.chaos.workloads.sets import SetWorkload

__all__ = ["MIXED", "WORKLOADS", "Workload", "make_workloads"]

ACTIVE_KEYS = 8
ACTIVE_KEYS_MIXED = 2
"""Of each kind. With 20 clients two or three work on one key at a time."""


class Workload(Protocol):
    """A source of operations, asked by many threads at once."""

    def next(self, process: int, random: Random) -> Operation | None:
        """What this client does next; None if there is nothing for it just now."""

    def final_reads(self) -> list[Operation]:
        """What to read when all is over, so that nothing acknowledged can have gone unseen."""


WORKLOADS: dict[str, Callable[[Random, int], Workload]] = {
    "register": RegisterWorkload,
    "append": AppendWorkload,
    "set": SetWorkload,
    "bank": BankWorkload,
    "lock": LockWorkload,
}
MIXED = "mixed"


def make_workloads(name: str, random: Random) -> list[Workload]:
    """The workloads that clients choose from at each turn: one, or all for ``mixed``."""
    if name == MIXED:
        return [make(random, ACTIVE_KEYS_MIXED) for make in WORKLOADS.values()]
    return [WORKLOADS[name](random, ACTIVE_KEYS)]
