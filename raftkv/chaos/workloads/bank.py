"""Accounts of one shard between which transactions move money: it must never be made or lost."""

import threading
from collections.abc import Mapping
from random import Random
from typing import Literal

from raftkv.chaos.operation import Operation, Outcome, ok, refused
from raftkv.chaos.store import Store
from raftkv.chaos.workloads.keys import KeyRotation
from raftkv.client import Compare, Entry, Get, Put

MODEL = "bank"
ACCOUNTS = ("a", "b", "c", "d", "e")
INITIAL = 100
AMOUNT_MAX = 30
ATTEMPTS_MAX = 8


class BankWorkload:
    """Several hot banks. The lock guards which of them are open.

    A bank is opened by one operation that comes before all others on its key; a bank whose opening
    has an unknown outcome is never used.
    """

    def __init__(self, random: Random, active: int) -> None:
        self._keys = KeyRotation("bank-", active, random, make=lambda name: f"{{{name}}}/")
        self._lock = threading.Lock()
        self._states: dict[str, Literal["opening", "open", "unusable"]] = {}

    def next(self, process: int, random: Random) -> Operation | None:
        """A transfer, or a read of all accounts; the opening of a bank that is new.

        None if the bank is being opened by somebody else.
        """
        del process
        key = self._keys.take(random)
        with self._lock:
            state = self._states.get(key)
            if state is None:
                self._states[key] = "opening"
                return self._open(key)
        if state != "open":
            return None
        if random.random() < 0.3:  # noqa: PLR2004 -- three of ten
            return read(key)
        giver, taker = random.sample(ACCOUNTS, 2)
        return transfer(key, giver, taker, random.randint(1, AMOUNT_MAX))

    def final_reads(self) -> list[Operation]:
        """One read of every bank that was opened."""
        with self._lock:
            return [read(key) for key, state in self._states.items() if state == "open"]

    def _open(self, key: str) -> Operation:
        def done(outcome: Outcome) -> None:
            with self._lock:
                self._states[key] = "open" if outcome.status == "ok" else "unusable"
            if outcome.status != "ok":
                self._keys.retire(key)

        def run(store: Store) -> Outcome:
            store.txn(then=[Put(key + account, str(INITIAL)) for account in ACCOUNTS])
            return ok()

        return Operation(MODEL, "init", key, dict.fromkeys(ACCOUNTS, INITIAL), run, done=done)


def read(key: str) -> Operation:
    """Read all accounts in one transaction."""

    def run(store: Store) -> Outcome:
        found = store.txn(then=[Get(key + account) for account in ACCOUNTS])
        entries = [entry if isinstance(entry, Entry) else None for entry in found.results]
        balances = {
            account: None if entry is None else int(entry.value)
            for account, entry in zip(ACCOUNTS, entries, strict=True)
        }
        newest = max((entry.revision for entry in entries if entry is not None), default=None)
        return ok(balances, revision=newest)

    return Operation(MODEL, "read", key, None, run, reads=True)


def transfer(key: str, giver: str, taker: str, amount: int) -> Operation:
    """Move money if both accounts are still as they were read."""

    def run(store: Store) -> Outcome:
        for _ in range(ATTEMPTS_MAX):
            before = {account: store.get(key + account) for account in (giver, taker)}
            balances = {name: _balance(entry) for name, entry in before.items()}
            if balances[giver] < amount:
                return refused("insufficient funds")
            balances[giver] -= amount
            balances[taker] += amount
            done = store.txn(_unchanged(key, before), _puts(key, balances))
            if done.succeeded:
                return ok(revision=done.revision)
        return refused(f"others were faster {ATTEMPTS_MAX} times")

    value = {"from": giver, "to": taker, "amount": amount}
    return Operation(MODEL, "transfer", key, value, run)


def _balance(entry: Entry | None) -> int:
    return 0 if entry is None else int(entry.value)


def _unchanged(key: str, before: Mapping[str, Entry | None]) -> list[Compare]:
    return [
        Compare(key + name, "mod", "=", 0 if entry is None else entry.revision)
        for name, entry in before.items()
    ]


def _puts(key: str, balances: Mapping[str, int]) -> list[Put]:
    return [Put(key + name, str(balance)) for name, balance in balances.items()]
