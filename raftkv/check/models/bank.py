"""A bank: transfers between accounts that must not be overdrawn, and reads of all balances.

The revisions of a bank strictly increase: each transfer makes one, and a read tells the newest.
They are compared by order only, and any of them may be left out of an answer.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

from raftkv.check.event import INFO
from raftkv.check.history import Operation
from raftkv.check.model import (
    Action,
    Model,
    Move,
    Never,
    Problem,
    Rank,
    accepts_not,
    malformed,
    shown,
    unheard_of,
    unjudged,
)

_Balances = tuple[int, ...]
"""By account; empty before the accounts are opened."""


class _State(NamedTuple):
    balances: _Balances
    revision: int
    """If it is known, the newest; otherwise the last that was known, which the newest exceeds."""
    known: bool


@dataclass(frozen=True, slots=True)
class _Init:
    balances: _Balances
    revision: int | None
    pure: ClassVar[bool] = False

    def apply(self, state: _State) -> _State | None:
        return _changed(state, self.balances, self.revision)


@dataclass(frozen=True, slots=True)
class _Transfer:
    source: int
    target: int
    amount: int
    revision: int | None
    pure: ClassVar[bool] = False

    def apply(self, state: _State) -> _State | None:
        if not state.balances or state.balances[self.source] < self.amount:
            return None
        balances = list(state.balances)
        balances[self.source] -= self.amount
        balances[self.target] += self.amount
        return _changed(state, tuple(balances), self.revision)


@dataclass(frozen=True, slots=True)
class _Read:
    balances: _Balances
    revision: int | None
    pure: ClassVar[bool] = True

    def apply(self, state: _State) -> _State | None:
        if state.balances != self.balances:
            return None
        if self.revision is None:
            return state
        if state.known:
            return state if state.revision == self.revision else None
        return _changed(state, state.balances, self.revision)


def _changed(state: _State, balances: _Balances, revision: int | None) -> _State | None:
    """Return the state with a newer revision; None stands for one that nobody told."""
    if revision is None:
        return _State(balances, state.revision, known=False)
    return _State(balances, revision, known=True) if revision > state.revision else None


class Bank(Model):
    """init, transfer, read; see docs/histories.md for their members."""

    name = "bank"

    def problem(self, operations: Sequence[Operation]) -> Problem:
        """Rank by revision where the answers tell it; otherwise be guided by the balances read."""
        judged = [op for op in operations if not unjudged(op, harmless=("read",))]
        accounts = _accounts(judged)
        moves = [self._move(operation, accounts) for operation in judged]

        def show(state: _State) -> str:
            at = f" at revision {state.revision}" if state.known else ""
            return f"holds {shown(dict(zip(accounts, state.balances, strict=False)))}{at}"

        return Problem(_State((), -1, known=False), moves, show, _distance)

    def _move(self, operation: Operation, accounts: dict[str, int]) -> Move:
        action = self._action(operation, accounts)
        return Move(operation, action, operation.status != INFO, _rank(action))

    def _action(self, operation: Operation, accounts: dict[str, int]) -> Action:
        match operation.f:
            case "init":
                balances = _checked(operation, operation.value)
                opened = tuple(balances.get(account, 0) for account in accounts)
                return _Init(opened, _told(operation))
            case "transfer":
                return _transfer(operation, accounts)
            case "read":
                return _read(operation, accounts)
        raise unheard_of(operation, self, ("init", "transfer", "read"))


def _accounts(operations: Sequence[Operation]) -> dict[str, int]:
    """Return where each account stands in a state."""
    names: set[str] = set()
    for operation in operations:
        if operation.f == "init":
            names.update(_checked(operation, operation.value))
    if not names and operations:
        raise malformed(operations[0], "an init operation must tell the balances of this bank")
    return {name: number for number, name in enumerate(sorted(names))}


def _transfer(operation: Operation, accounts: dict[str, int]) -> _Transfer:
    match operation.value:
        case {"from": str(source), "to": str(target), "amount": int(amount)} if amount >= 0:
            if source in accounts and target in accounts:
                return _Transfer(accounts[source], accounts[target], amount, _told(operation))
            raise malformed(operation, "no init operation names these accounts")
    raise malformed(operation, 'its value must have "from", "to" and an "amount" from 0')


def _read(operation: Operation, accounts: dict[str, int]) -> _Read | Never:
    found = operation.result or {}
    if isinstance(found, dict):
        # An account that is not there has no balance.
        found = {account: amount for account, amount in found.items() if amount is not None}
    balances = _checked(operation, found)
    if not balances:
        return _Read((), None)
    if balances.keys() != accounts.keys():
        return Never()
    return _Read(tuple(balances[account] for account in accounts), _told(operation))


def _checked(operation: Operation, balances: Any) -> dict[str, int]:
    if isinstance(balances, dict) and all(type(amount) is int for amount in balances.values()):
        return balances
    raise malformed(operation, f"balances must be an object of integers, not {shown(balances)}")


def _told(operation: Operation) -> int | None:
    """Return the revision that an answer tells, if it tells one."""
    revision = operation.fields.get("revision")
    if operation.status == INFO or revision is None:
        return None
    if type(revision) is int and revision >= 0:
        return revision
    raise malformed(
        operation, f'"revision" must be null or an integer from 0, not {shown(revision)}'
    )


def _rank(action: Action) -> Rank | None:
    """Return the place by revision: what makes one, and what sees it."""
    match action:
        case _Init(revision=int(revision)) | _Transfer(revision=int(revision)):
            return revision, 0
        case _Read(revision=int(revision)):
            return revision, 1
    return None


def _distance(state: _State, action: Action) -> int:
    """Return how much money is elsewhere than a read found it."""
    if not isinstance(action, _Read) or len(state.balances) != len(action.balances):
        return accepts_not(state, action)
    pairs = zip(state.balances, action.balances, strict=True)
    return sum(abs(held - read) for held, read in pairs)
